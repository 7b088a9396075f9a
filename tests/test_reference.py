"""References: every spelling of a name, what is refused, and the way to the disk and back."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl.errors import UsageError
from mdl.reference import LONGEST_SEGMENT, Reference

SHA = "sha256:" + "0123456789abcdef" * 4

SPELLINGS = [
    ("quay.io/ai-lab/models/granite-7b-lab:v1.1", "quay.io/ai-lab/models/granite-7b-lab:v1.1"),
    ("oci://quay.io/ai-lab/granite:v1.1", "quay.io/ai-lab/granite:v1.1"),
    (f"quay.io/a/b:1@{SHA}", f"quay.io/a/b:1@{SHA}"),
    ("QUAY.io/a/b", "quay.io/a/b"),
    ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
    ("docker.io/smollm", "docker.io/library/smollm"),
    ("docker://index.docker.io/ai/smollm2:360M", "docker.io/ai/smollm2:360M"),
    ("org/name", "huggingface.co/org/name"),
    ("hf://org/name", "huggingface.co/org/name"),
    ("hf.co/org/name", "huggingface.co/org/name"),
    ("HF.co/org/name", "huggingface.co/org/name"),
    ("huggingface.co/org/name", "huggingface.co/org/name"),
    ("huggingface://org/name", "huggingface.co/org/name"),
    ("hf://huggingface.co/org/name", "huggingface.co/org/name"),
    ("https://huggingface.co/org/name", "huggingface.co/org/name"),
    ("https://huggingface.co/org/name/", "huggingface.co/org/name"),
    ("https://huggingface.co/org/name/tree/main", "huggingface.co/org/name"),
    ("https://huggingface.co/org/name/tree/v2", "huggingface.co/org/name@v2"),
    ("https://huggingface.co/org/name/blob/main/m.Q8_0.gguf", "huggingface.co/org/name:m.Q8_0.gguf"),
    ("https://huggingface.co/org/name/blob/abc1234/sub/m.gguf", "huggingface.co/org/name:sub/m.gguf@abc1234"),
    ("https://huggingface.co/org/name/resolve/main/m.gguf?download=true", "huggingface.co/org/name:m.gguf"),
    ("https://hf.co/org/name/resolve/refs%2Fpr%2F3/m.gguf", "huggingface.co/org/name:m.gguf@refs/pr/3"),
    ("https://huggingface.co/org/name?show_file_info=m.Q8_0.gguf", "huggingface.co/org/name:m.Q8_0.gguf"),
    ("org/name:q4_k_m", "huggingface.co/org/name:Q4_K_M"),
    ("org/name/Q4_K_M", "huggingface.co/org/name:Q4_K_M"),
    ("quay.io/org/name:q4_k_m", "quay.io/org/name:q4_k_m"),
    ("org/name/sub/m.gguf", "huggingface.co/org/name:sub/m.gguf"),
    ("org/name:main@abc1234", "huggingface.co/org/name:main@abc1234"),
    ("huggingface.co/gpt2", "huggingface.co/gpt2"),
    ("ollama://mistral:7b", "registry.ollama.ai/library/mistral:7b"),
    ("ollama://user/name:tag", "registry.ollama.ai/user/name:tag"),
    ("registry.ollama.ai/library/mistral:7b", "registry.ollama.ai/library/mistral:7b"),
    ("registry.ollama.ai/library/mistral/7b", "registry.ollama.ai/library/mistral:7b"),
    ("granite-7b-lab", "granite-7b-lab"),
    ("granite-7b-lab:v1.1", "granite-7b-lab:v1.1"),
    ("https://x.org:8443/a b/c.gguf", "https://x.org:8443/a b/c.gguf"),
    ("https://x.org/c.gguf?sig=secret#here", "https://x.org/c.gguf"),
    ("x.org/models/c.gguf", "https://x.org/models/c.gguf"),
    ("http://127.0.0.1:8000/c.gguf", "http://127.0.0.1:8000/c.gguf"),
    ("oci://quay.io/a/b.gguf:1", "oci://quay.io/a/b.gguf:1"),
    ("file:///data/m.gguf", "file:///data/m.gguf"),
    ("file://localhost/data/m.gguf", "file:///data/m.gguf"),
    ("openai://API.openai.com/v1/gpt-4o", "openai://api.openai.com/v1/gpt-4o"),
    ("openai://api.openai.com/v1#gpt-4o", "openai://api.openai.com/v1/gpt-4o"),
    ("openai://h/v1beta/openai#gemini", "openai://h/v1beta/openai#gemini"),
    ("openai://h/#org/name", "openai://h/#org/name"),
    ("openai://localhost:3000/v1/quay.io/org/name:Q8_0", "openai://localhost:3000/v1/quay.io/org/name:Q8_0"),
    ("azure://r.openai.azure.com/gpt", "azure://r.openai.azure.com/gpt"),
    ("azure://r.x/gpt?api-version=2024-10-21", "azure://r.x/gpt?api-version=2024-10-21"),
]

HOSTILE = [
    "",
    " ",
    " org/name",
    "org/name\n",
    "../etc/passwd",
    "org/../name",
    "org/name/../../x",
    "quay.io/../a",
    "quay.io/a/..:x",
    "quay.io/a/..",
    "org/name:../../x",
    "org/name:..",
    "org/name:a/../b",
    "org/name:%2e%2e",
    "org/name:%2e%2e/x",
    "org/name:..%2f..%2fx",
    "org/name@..",
    "org/name@../x",
    "https://x.org/a/%2e%2e/b.gguf",
    "https://x.org/../b.gguf",
    "https://huggingface.co/org/%2e%2e",
    "https://huggingface.co/org/name/resolve/main/%2e%2e/m.gguf",
    "https://huggingface.co/org/name/settings",
    "org\\name",
    "org/name:..\\x",
    "org/na\0me",
    "org/name:\0",
    "org/na\x1b[31mme",
    "org/na\u202eme",
    "org/na\u200bme",
    "org/na\u2028me",
    "org/na\ud800me",
    "-rf",
    "--help",
    "org/-name",
    "-org/name",
    "quay.io/a/b@sha256:123",
    f"quay.io/a/b@sha256:{'G' * 64}",
    f"quay.io/a/b@SHA256:{'0' * 64}",
    "quay.io/a/b@latest",
    "user:password@quay.io/a/b",
    "https://user:password@x.org/m.gguf",
    "https://user@x.org/m.gguf",
    "https://x.org/model.bin",
    "https:///m.gguf",
    "https://x..org/m.gguf",
    "https://[::1/m.gguf",
    "oci://name",
    "ollama://a/b/c/d",
    "ftp://x.org/m.gguf",
    "javascript://x/m.gguf",
    "org/name:",
    "org/name@",
    "org//name",
    "quay.io//a",
    "/",
    "quay.io:99999999/a/b",
    "localhost:port/a",
    "org/name:" + "v" * 300,
    "o" * 300 + "/name",
    "a/" * 2048,
    "x" * 4096,
    "x" * 1_000_000,
    "file://elsewhere/m.gguf",
    "file:///a/../b.gguf",
    "file:///",
    "openai://h",
    "openai://h/",
    "openai://h/v1#",
    "openai://h/v1/../x",
    "openai://h/v1/%2e%2e/x",
    "openai://h/v1/a#b#c",
    "openai://h/v1/a b",
    "openai://h/v1//x",
    "openai://h/v1/-x",
    "openai://h/v1/x?key=1",
    "openai://key@h/v1/x",
    "azure://h/x?api-version=",
    "azure://h/x?api-version=../..",
    "azure://h/x?api-version=2024-10-21&key=1",
    "azure://h/x?code=1",
]


@pytest.mark.parametrize(("text", "canonical"), SPELLINGS)
def test_all_spellings_of_a_name_are_one_name(text: str, canonical: str) -> None:
    assert str(Reference.parse(text)) == canonical


@pytest.mark.parametrize("text", [canonical for _, canonical in SPELLINGS])
def test_a_reference_reads_back_what_it_prints(text: str) -> None:
    assert str(Reference.parse(text)) == text
    assert Reference.parse(str(Reference.parse(text))) == Reference.parse(text)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_what_is_no_name_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Reference.parse(text)
    assert refused.value.code == 2
    assert len(refused.value.message) < 300
    assert refused.value.message.isprintable()


def test_a_signature_in_an_address_is_not_part_of_the_name() -> None:
    signed = Reference.parse("https://x.org/m.gguf?X-Amz-Signature=secret")
    assert signed.query == "X-Amz-Signature=secret"
    assert "secret" not in str(signed) + repr(signed)
    assert signed == Reference.parse("https://x.org/m.gguf")


def test_a_password_in_an_address_is_not_in_the_error() -> None:
    with pytest.raises(UsageError) as refused:
        Reference.parse("https://user:hunter2@x.org/m.gguf")
    assert "hunter2" not in str(refused.value) + refused.value.hint


API_PARTS = [
    ("openai://api.openai.com/v1/gpt-4o", ("v1", "gpt-4o")),
    ("openai://h/api/v1/openai/gpt-4o:free", ("api/v1", "openai/gpt-4o:free")),
    ("openai://h/v4/accounts/a/ai/v1/@cf/x", ("v4/accounts/a/ai/v1", "@cf/x")),
    ("openai://h/v1beta/openai#gemini", ("v1beta/openai", "gemini")),
    ("openai://h/sonar", ("", "sonar")),
    ("openai://h/#org/name", ("", "org/name")),
    ("azure://h/gpt?api-version=preview", ("", "gpt")),
]


@pytest.mark.parametrize(("text", "parts"), API_PARTS)
def test_an_apis_address_ends_where_its_version_does_or_where_a_sign_says_so(
    text: str, parts: tuple[str, str]
) -> None:
    assert Reference.parse(text).api_parts == parts


@pytest.mark.parametrize("text", ["azure://h/x?code=hunter2", "azure://h/x?api-version=1&key=hunter2",
                                  "openai://h/x?key=hunter2", "openai://hunter2@h/x"])  # fmt: skip
def test_a_key_in_the_address_of_an_api_is_not_in_the_error(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Reference.parse(text)
    assert "hunter2" not in str(refused.value) + refused.value.hint


PATHS = [
    ("quay.io/ai-lab/models/granite:v1.1", ("quay.io", "ai-lab", "models", "granite", "v1.1")),
    ("org/name:Q4_K_M", ("huggingface.co", "org", "name", "Q4_K_M")),
    ("org/name:Q4_K_M@191239b", ("huggingface.co", "org", "name", "Q4_K_M@191239b")),
    ("org/name:main@refs/pr/1", ("huggingface.co", "org", "name", "main@refs%2Fpr%2F1")),
    ("org/name:sub/m.gguf", ("huggingface.co", "org", "name", "sub%2Fm.gguf")),
    ("localhost:5000/a:1", ("localhost%3A5000", "a", "1")),
    ("org/name:NUL", ("huggingface.co", "org", "name", "%4EUL")),
    ("org/name:com1.txt", ("huggingface.co", "org", "name", "%63om1.txt")),
    ("org/name:.metadata", ("huggingface.co", "org", "name", "%2Emetadata")),
    ("org/name:a.", ("huggingface.co", "org", "name", "a%2E")),
    ("org/name:a@b", ("huggingface.co", "org", "name", "a@b")),
    ("https://x.org/a b/m.gguf", ("x.org", "a b", "m.gguf", "latest")),
    ("http://x.org:81/m.gguf", ("http%3Ax.org%3A81", "m.gguf", "latest")),
    ("file:///data/m.gguf", ("file", "data", "m.gguf", "latest")),
    ("oci://x.org/m.gguf:1", ("oci%3Ax.org", "m.gguf", "1")),
    ("azure://x.org/m?api-version=preview", ("azure%3Ax.org", "m", "preview")),
]


@pytest.mark.parametrize(("text", "parts"), PATHS)
def test_a_reference_and_its_folder_convert_both_ways(text: str, parts: tuple[str, ...]) -> None:
    reference = Reference.parse(text)
    assert reference.path_parts() == parts
    assert Reference.from_path_parts(parts, versioned=True) == reference


SEGMENT = st.text(alphabet=string.ascii_letters + string.digits + "._-", min_size=1, max_size=40)
VERSION = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=40)
HOSTS = st.sampled_from(
    ["", "hf://", "quay.io/", "localhost:5000/", "ollama://", "oci://x.org/", "https://x.org/", "http://h:1/",
     "openai://h:1/", "openai://h/v1/", "openai://h/v1#", "openai://h/#", "azure://h/"]
)  # fmt: skip


@st.composite
def names(draw: st.DrawFn) -> str:
    text = draw(HOSTS) + "/".join(draw(st.lists(SEGMENT, min_size=1, max_size=4)))
    if draw(st.booleans()):
        text += ".gguf"
    if draw(st.booleans()):
        text += ":" + draw(VERSION)
    if draw(st.booleans()):
        text += "@" + draw(st.one_of(VERSION, st.just(SHA)))
    return text


@settings(max_examples=10_000, deadline=None)
@given(st.one_of(names(), st.text(max_size=60)))
def test_whatever_is_accepted_reads_back_and_stays_below_its_folder(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(str(reference)) == reference
    parts = reference.path_parts()
    assert parts
    for part in parts:
        assert part not in ("", ".", "..")
        assert not part.startswith((".", "-"))
        assert not set(part) & set('/\\:*?"<>|\0\n')
        assert part.isascii()
        assert len(part) <= LONGEST_SEGMENT + 60
    versioned = len(parts) > 1 and parts != reference.model.path_parts()
    if versioned and reference.scheme != "short":
        assert Reference.from_path_parts(parts, versioned=True) == reference

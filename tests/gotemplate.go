// Writes prompts by Go's own text/template, in the way that Ollama calls it. What tests/gotemplates.json promises
// of the translation in mdl/gotemplate.py comes from here: each of its templates, with each of its conversations.
//
//	go run tests/gotemplate.go < tests/gotemplates.json > new.json && mv new.json tests/gotemplates.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
)

type Arguments map[string]any

type CalledFunction struct {
	Name      string    `json:"name"`
	Arguments Arguments `json:"arguments"`
}

type ToolCall struct {
	ID       string         `json:"id,omitempty"`
	Function CalledFunction `json:"function"`
}

type Message struct {
	Role       string     `json:"role"`
	Content    string     `json:"content"`
	Thinking   string     `json:"reasoning_content,omitempty"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`
	ToolName   string     `json:"name,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`
	Images     []string   `json:"images,omitempty"`
}

type Property struct {
	Type        any    `json:"type"`
	Description string `json:"description,omitempty"`
	Enum        []any  `json:"enum,omitempty"`
	Items       any    `json:"items,omitempty"`
}

type Parameters struct {
	Type       string              `json:"type"`
	Required   []string            `json:"required,omitempty"`
	Properties map[string]Property `json:"properties"`
}

type Function struct {
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Parameters  Parameters `json:"parameters"`
}

type Tool struct {
	Type     string   `json:"type"`
	Function Function `json:"function"`
}

type Tools []Tool

func written(value any) string {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(buffer.String(), "\n")
}

func (value Arguments) String() string  { return written(map[string]any(value)) }
func (value Parameters) String() string { return written(value) }
func (value Function) String() string   { return written(value) }
func (value Tool) String() string       { return written(value) }
func (value Tools) String() string      { return written([]Tool(value)) }

type Conversation struct {
	Name     string    `json:"name"`
	Messages []Message `json:"messages"`
	Tools    Tools     `json:"tools,omitempty"`
	Think    *bool     `json:"think,omitempty"`
}

type Template struct {
	Name    string   `json:"name"`
	Source  string   `json:"source"`
	Prompts []string `json:"prompts"`
}

type Book struct {
	Conversations []Conversation `json:"conversations"`
	Templates     []Template     `json:"templates"`
}

// names of fields and variables, in lower case
func names(node parse.Node, found map[string]bool) {
	switch node := node.(type) {
	case *parse.ListNode:
		if node != nil {
			for _, child := range node.Nodes {
				names(child, found)
			}
		}
	case *parse.ActionNode:
		names(node.Pipe, found)
	case *parse.IfNode:
		branch(&node.BranchNode, found)
	case *parse.WithNode:
		branch(&node.BranchNode, found)
	case *parse.RangeNode:
		branch(&node.BranchNode, found)
	case *parse.PipeNode:
		for _, command := range node.Cmds {
			for _, argument := range command.Args {
				names(argument, found)
			}
		}
	case *parse.FieldNode:
		for _, name := range node.Ident {
			found[strings.ToLower(name)] = true
		}
	case *parse.VariableNode:
		for _, name := range node.Ident {
			found[strings.ToLower(name)] = true
		}
	}
}

func branch(node *parse.BranchNode, found map[string]bool) {
	names(node.Pipe, found)
	names(node.List, found)
	names(node.ElseList, found)
}

// Leaves out all that follows the response. True once that was seen.
func cut(list *parse.ListNode) bool {
	if list == nil {
		return false
	}
	for index, node := range list.Nodes {
		seen := false
		switch node := node.(type) {
		case *parse.ActionNode:
			found := map[string]bool{}
			for _, command := range node.Pipe.Cmds {
				for _, argument := range command.Args {
					if field, ok := argument.(*parse.FieldNode); ok {
						names(field, found)
					}
				}
			}
			seen = found["response"]
		case *parse.IfNode:
			seen = cut(node.List)
			seen = cut(node.ElseList) || seen
		case *parse.WithNode:
			seen = cut(node.List)
			seen = cut(node.ElseList) || seen
		}
		if seen {
			list.Nodes = list.Nodes[:index+1]
			return true
		}
	}
	return false
}

func collated(messages []Message) (string, []*Message) {
	var system []string
	var result []*Message
	for index := range messages {
		message := messages[index]
		if message.Role == "system" {
			system = append(system, message.Content)
		}
		last := len(result) - 1
		if last >= 0 && result[last].Role == message.Role && message.Role != "tool" {
			result[last].Content += "\n\n" + message.Content
		} else {
			result = append(result, &message)
		}
	}
	return strings.Join(system, "\n\n"), result
}

func prompt(source string, asked Conversation) (result string, failure error) {
	functions := template.FuncMap{"json": written}
	compiled, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(source)
	if err != nil {
		return "", err
	}
	found := map[string]bool{}
	names(compiled.Tree.Root, found)
	if !found["messages"] && !found["response"] {
		compiled, err = template.New("").Option("missingkey=zero").Funcs(functions).Parse(source + "{{ .Response }}")
		if err != nil {
			return "", err
		}
	}
	system, messages := collated(asked.Messages)
	think := asked.Think != nil && *asked.Think
	var buffer bytes.Buffer
	if found["messages"] {
		err = compiled.Execute(&buffer, map[string]any{
			"System": system, "Messages": messages, "Tools": asked.Tools, "Response": "",
			"Think": think, "IsThinkSet": asked.Think != nil,
		})
		return buffer.String(), err
	}
	turn := map[string]any{"Think": think, "IsThinkSet": asked.Think != nil}
	clear := func() { turn["System"], turn["Prompt"], turn["Response"] = "", "", "" }
	clear()
	write := func() {
		if err == nil {
			err = compiled.Execute(&buffer, turn)
		}
		clear()
	}
	for _, message := range messages {
		switch message.Role {
		case "system":
			if turn["Prompt"] != "" || turn["Response"] != "" {
				write()
			}
			turn["System"] = message.Content
		case "user":
			if turn["Response"] != "" {
				write()
			}
			turn["Prompt"] = message.Content
		case "assistant":
			turn["Response"] = message.Content
		}
	}
	if err != nil {
		return "", err
	}
	cut(compiled.Tree.Root)
	err = compiled.Execute(&buffer, turn)
	return buffer.String(), err
}

func main() {
	var book Book
	if err := json.NewDecoder(os.Stdin).Decode(&book); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for index := range book.Templates {
		entry := &book.Templates[index]
		entry.Prompts = nil
		for _, asked := range book.Conversations {
			text, err := prompt(entry.Source, asked)
			if err != nil {
				fmt.Fprintln(os.Stderr, entry.Name, asked.Name, err)
				os.Exit(1)
			}
			entry.Prompts = append(entry.Prompts, text)
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(book); err != nil {
		panic(err)
	}
}

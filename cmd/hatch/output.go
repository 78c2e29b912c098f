package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// format is how data is written to stdout. It is a flag's value.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatJSONL format = "jsonl"
	formatYAML  format = "yaml"
)

var formatNames = []string{string(formatTable), string(formatWide), string(formatJSON), string(formatJSONL), string(formatYAML)}

// String, Set and Type make format a flag's value.
func (f *format) String() string { return string(*f) }

// Type names the kind of value in help texts.
func (f *format) Type() string { return "format" }

// Set takes one of the known formats.
func (f *format) Set(s string) error {
	if !slices.Contains(formatNames, s) {
		return fmt.Errorf("%q is none of %s", s, strings.Join(formatNames, ", "))
	}
	*f = format(s)
	return nil
}

// structured reports whether the API's own body is asked for.
func (f format) structured() bool { return f != formatTable && f != formatWide }

// printOne writes one object: the API's body, or what plain writes.
func (c *cli) printOne(object any, plain func()) error {
	switch c.format {
	case formatJSON, formatJSONL:
		return writeJSON(c.out, object, c.format == formatJSON)
	case formatYAML:
		return writeYAML(c.out, object)
	}
	plain()
	return nil
}

// printList writes a list: the API's array, its items line by line, or a table.
func printList[T any](c *cli, list []T, t func(wide bool) table) error {
	if list == nil {
		list = []T{} // an empty array, not null
	}
	switch c.format {
	case formatJSON:
		return writeJSON(c.out, list, true)
	case formatYAML:
		return writeYAML(c.out, list)
	case formatJSONL:
		for _, item := range list {
			if err := writeJSON(c.out, item, false); err != nil {
				return err
			}
		}
		return nil
	}
	return t(c.format == formatWide).write(c.out, c.colour())
}

func writeJSON(w io.Writer, v any, indent bool) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}

// writeYAML writes the same fields, in the same order, as the JSON has.
func writeYAML(w io.Writer, v any) error {
	var b bytes.Buffer
	if err := writeJSON(&b, v, false); err != nil {
		return err
	}
	d := json.NewDecoder(&b)
	d.UseNumber()
	node, err := yamlNode(d)
	if err != nil {
		return fmt.Errorf("cannot write YAML: %w", err)
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(node); err != nil {
		return fmt.Errorf("cannot write YAML: %w", err)
	}
	return e.Close()
}

// yamlNode reads the next JSON value as a YAML node.
func yamlNode(d *json.Decoder) (*yaml.Node, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		return yamlCollection(d, t)
	case string:
		n := &yaml.Node{}
		n.SetString(t)
		return n, nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: t.String()}, nil
	case bool, nil:
		n := &yaml.Node{}
		return n, n.Encode(t)
	}
	return nil, errors.New("unexpected JSON")
}

func yamlCollection(d *json.Decoder, open json.Delim) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	if open == '{' {
		n.Kind = yaml.MappingNode
	}
	for d.More() {
		values := 1
		if open == '{' {
			values = 2 // a key and its value
		}
		for range values {
			child, err := yamlNode(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
	}
	_, err := d.Token() // the closing one
	if len(n.Content) == 0 {
		n.Style = yaml.FlowStyle
	}
	return n, err
}

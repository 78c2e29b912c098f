package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/hatchvm/hatch/api"
)

// format is how data is written to stdout. It is the value of a flag.
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

// Set accepts one of the known formats.
func (f *format) Set(s string) error {
	if !slices.Contains(formatNames, s) {
		return fmt.Errorf("%q is not one of %s", s, strings.Join(formatNames, ", "))
	}
	*f = format(s)
	return nil
}

// structured reports whether the API's own body is printed.
func (f format) structured() bool { return f != formatTable && f != formatWide }

// printer writes results, progress and errors in the format of -o.
type printer struct {
	streams
	format      format
	template    *template.Template // of formatTemplate
	plainErrors bool               // not in format
	noHeaders   bool               // of tables
}

// printOne writes one object: the API's body, or what plain writes.
func (p *printer) printOne(object any, plain func()) error {
	switch p.format {
	case formatJSON, formatJSONL:
		return writeJSON(p.out, object, p.format == formatJSON)
	case formatYAML:
		return writeYAML(p.out, object)
	case formatTemplate:
		return p.printTemplate(object)
	}
	plain()
	return nil
}

// printLine writes one object: the API's body, or a line such as its id.
func (p *printer) printLine(object any, line string) error {
	return p.printOne(object, func() { fmt.Fprintln(p.out, clean(line)) })
}

// inspecting returns a printer for all fields of objects: as JSON, unless another
// format was given. Errors have the format that was given.
func (p *printer) inspecting(cmd *cobra.Command) *printer {
	if cmd.Flags().Changed("output") || p.format == formatTemplate {
		return p
	}
	inspect := *p
	inspect.format, inspect.plainErrors = formatJSON, true
	return &inspect
}

// printInspected writes all fields of one object; see inspecting.
func (p *printer) printInspected(cmd *cobra.Command, object any) error {
	p = p.inspecting(cmd)
	return p.printOne(object, func() { p.printFields(object) })
}

// printFields writes one line for each field of an object, in the API's order.
func (p *printer) printFields(object any) {
	var b bytes.Buffer
	if err := writeJSON(&b, object, false); err != nil {
		return
	}
	d := json.NewDecoder(&b)
	if _, err := d.Token(); err != nil {
		return
	}
	t := table{head: []string{"FIELD", "VALUE"}}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return
		}
		var text string
		if json.Unmarshal(value, &text) != nil { // not a string
			text = strings.TrimSpace(string(value))
		}
		t.row(fmt.Sprint(name), text)
	}
	_ = t.write(p.out, p.colour())
}

// printList writes a list: the API's array, one item per line, or a table.
func printList[T any](p *printer, list []T, t func(wide bool) table) error {
	if list == nil {
		list = []T{} // an empty array, not null
	}
	switch p.format {
	case formatJSON:
		return writeJSON(p.out, list, true)
	case formatYAML:
		return writeYAML(p.out, list)
	case formatJSONL:
		for _, item := range list {
			if err := writeJSON(p.out, item, false); err != nil {
				return err
			}
		}
		return nil
	case formatTemplate:
		for _, item := range list {
			if err := p.printTemplate(item); err != nil {
				return err
			}
		}
		return nil
	}
	rows := t(p.format == formatWide)
	rows.noHead = p.noHeaders
	return rows.write(p.out, p.colour())
}

// age returns how long ago t was, in its largest unit.
func (p *printer) age(t api.Time) string {
	if t.IsZero() {
		return ""
	}
	return spanText(p.now().Sub(t.Time))
}

// clock returns t in the local time zone.
func (p *printer) clock(t api.Time) string { return t.In(p.now().Location()).Format(time.DateTime) }

func writeJSON(w io.Writer, v any, indent bool) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}

// writeYAML writes the fields of the JSON form, in the same order.
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
	_, err := d.Token() // the closing bracket
	if len(n.Content) == 0 {
		n.Style = yaml.FlowStyle
	}
	return n, err
}

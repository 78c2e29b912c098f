package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"text/template"
)

// formatTemplate prints each object with the template of --format.
const formatTemplate format = "template"

// templateFlag is the value of --format. As with docker, it may also be the name of
// a format.
type templateFlag struct{ *printer }

// String returns "": there is no default.
func (templateFlag) String() string { return "" }

// Type names the kind of value in help texts.
func (templateFlag) Type() string { return "template" }

// Set parses the template.
func (f templateFlag) Set(text string) error {
	if slices.Contains(formatNames, text) {
		return f.format.Set(text)
	}
	parsed, err := template.New("--format").Funcs(template.FuncMap{
		"json":  func(v any) (string, error) { text, err := json.Marshal(v); return string(text), err },
		"join":  joined,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
	}).Option("missingkey=zero").Parse(text)
	if err != nil {
		return fmt.Errorf("it is not a Go template: %w", err)
	}
	f.format, f.template = formatTemplate, parsed
	return nil
}

// joined joins the items of a list, such as ssh_authorized_keys.
func joined(list any, separator string) string {
	items, ok := list.([]any)
	if !ok {
		return fmt.Sprint(list)
	}
	var texts []string
	for _, item := range items {
		texts = append(texts, fmt.Sprint(item))
	}
	return strings.Join(texts, separator)
}

// printTemplate writes one object with the template, and a newline.
func (p *printer) printTemplate(object any) error {
	fields, err := fieldsOf(object)
	if err != nil {
		return err
	}
	if labels, ok := fields["labels"]; ok { // a label that an object lacks is "", not an error
		texts := map[string]string{}
		if given, ok := labels.(map[string]any); ok {
			for key, value := range given {
				texts[key] = fmt.Sprint(value)
			}
		}
		fields["labels"] = texts
	}
	var line strings.Builder
	if err := p.template.Execute(&line, fields); err != nil {
		return usageError{fmt.Errorf("cannot use --format: %w", err)}
	}
	if strings.Contains(line.String(), "<no value>") { // of the template package, for a missing field
		return usageError{fmt.Errorf("--format names a field that is not there; there are %s", strings.Join(fieldNames(reflect.TypeOf(object)), ", "))}
	}
	if p.outTTY {
		_, err = fmt.Fprintln(&cleaner{w: p.out}, line.String())
	} else {
		_, err = fmt.Fprintln(p.out, line.String())
	}
	return err
}

package httpapi

import (
	"fmt"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// typeOf describes a schema's type.
func typeOf(s *huma.Schema) docsType {
	switch {
	case s == nil:
		return docsType{}
	case s.Ref != "":
		name := s.Ref[strings.LastIndex(s.Ref, "/")+1:]
		return docsType{Text: name, Schema: name}
	case s.Type == huma.TypeArray:
		of := typeOf(s.Items)
		return docsType{Text: "array of " + of.Text, Schema: of.Schema}
	}
	if len(s.OneOf) > 0 {
		names := make([]string, len(s.OneOf))
		for i, of := range s.OneOf {
			names[i] = typeOf(of).Text
		}
		return docsType{Text: strings.Join(names, " or ")}
	}
	if of, ok := s.AdditionalProperties.(*huma.Schema); ok {
		return docsType{Text: "object of " + typeOf(of).Text}
	}
	switch {
	case s.Type == "":
		return docsType{Text: "any"}
	case s.Format == "binary":
		return docsType{Text: "bytes"}
	}
	return docsType{Text: s.Type}
}

// limitsOf describes the values that a schema allows, its default and an example.
func limitsOf(s *huma.Schema) string {
	if s == nil {
		return ""
	}
	var limits []string
	add := func(format string, args ...any) { limits = append(limits, fmt.Sprintf(format, args...)) }
	if len(s.Enum) > 0 {
		add("one of %s", listOf(s.Enum))
	}
	if values, ok := s.Extensions[extensibleEnum].([]any); ok {
		add("such as %s", listOf(values))
	}
	if s.Minimum != nil {
		add("at least %.0f", *s.Minimum)
	}
	if s.Maximum != nil {
		add("at most %.0f", *s.Maximum)
	}
	if s.MaxLength != nil {
		add("up to %d characters", *s.MaxLength)
	}
	if s.Default != nil {
		add("default %v", s.Default)
	}
	if len(s.Examples) > 0 {
		add("such as %v", s.Examples[0])
	}
	return strings.Join(limits, "; ")
}

func listOf(values []any) string {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = fmt.Sprint(v)
	}
	return strings.Join(names, ", ")
}

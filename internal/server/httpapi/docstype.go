package httpapi

import (
	"fmt"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// typeOf returns a schema's type in words.
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
		words := make([]string, len(s.OneOf))
		for i, of := range s.OneOf {
			words[i] = typeOf(of).Text
		}
		return docsType{Text: strings.Join(words, " or ")}
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

// limitsOf returns what values a schema allows, its default and an example, in
// words.
func limitsOf(s *huma.Schema) string {
	if s == nil {
		return ""
	}
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	if len(s.Enum) > 0 {
		say("one of %s", listOf(s.Enum))
	}
	if s.Minimum != nil {
		say("at least %.0f", *s.Minimum)
	}
	if s.Maximum != nil {
		say("at most %.0f", *s.Maximum)
	}
	if s.MaxLength != nil {
		say("up to %d characters", *s.MaxLength)
	}
	if s.Default != nil {
		say("default %v", s.Default)
	}
	if len(s.Examples) > 0 {
		say("such as %v", s.Examples[0])
	}
	return strings.Join(said, "; ")
}

func listOf(values []any) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}

package httpapi

import (
	"encoding/json"
	"testing"
)

// A client that is generated from the document must not fail at a value that a later
// hatchd adds, and finds every operation in a group that is described.
func TestDocumentIsForGenerators(t *testing.T) {
	text, err := Document("1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Servers []struct{ URL string }
		Tags    []struct{ Name, Description string }
		Paths   map[string]map[string]struct {
			Tags []string
		}
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct {
					Enum       []any
					Extensible []any `json:"x-extensible-enum"`
					Format     string
				}
			}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, tag := range doc.Tags {
		known[tag.Name] = tag.Description != ""
	}
	for path, operations := range doc.Paths {
		for method, op := range operations {
			if len(op.Tags) != 1 || !known[op.Tags[0]] {
				t.Errorf("%s %s has the tags %v", method, path, op.Tags)
			}
		}
	}
	for name, schema := range doc.Components.Schemas {
		for field, property := range schema.Properties {
			if !requestSchemas[name] && len(property.Enum) > 1 {
				t.Errorf("%s.%s has a closed list of values", name, field)
			}
		}
	}
	for name := range requestSchemas {
		if _, ok := doc.Components.Schemas[name]; !ok {
			t.Errorf("there is no schema %s", name)
		}
	}
	for name := range idPatterns {
		if _, ok := doc.Components.Schemas[name].Properties["id"]; !ok {
			t.Errorf("%s has no id", name)
		}
	}
	vm := doc.Components.Schemas["VM"].Properties
	if len(vm["state"].Extensible) < 7 || vm["guest_ip"].Format != "ipv4" || len(doc.Servers) != 1 {
		t.Errorf("VM %+v, servers %v", vm, doc.Servers)
	}
}

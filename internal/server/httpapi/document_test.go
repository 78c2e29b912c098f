package httpapi

import (
	"encoding/json"
	"fmt"
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

// What requests may leave out may be null, as the door takes it; an object that was made
// leads to the operations on it.
func TestDocumentHasNullsAndLinks(t *testing.T) {
	text, err := Document("1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Links map[string]struct{ OperationID string }
			}
		}
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Type, Enum any }
			}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ schema, field, want string }{
		{"CreateVM", "name", "[string null]"},
		{"BuildImage", "recipe", "[string null]"},
		{"UpdateTemplate", "vcpu_count", "[integer null]"},
		{"CreateTemplate", "name", "string"},
		{"VM", "name", "string"},
	} {
		if got := fmt.Sprint(doc.Components.Schemas[c.schema].Properties[c.field].Type); got != c.want {
			t.Errorf("%s.%s has the type %s, want %s", c.schema, c.field, got, c.want)
		}
	}
	if enum := doc.Components.Schemas["BuildImage"].Properties["recipe"].Enum; fmt.Sprint(enum) != "[debian minimal base <nil>]" {
		t.Errorf("recipes are %v", enum)
	}
	for path, want := range map[string]string{"/vms": "stop-vm", "/vms/{id}/snapshot": "delete-snapshot", "/webhooks": "update-webhook"} {
		if link := doc.Paths[path]["post"].Responses["201"].Links[want]; link.OperationID != want {
			t.Errorf("POST %s has no link to %s", path, want)
		}
	}
}

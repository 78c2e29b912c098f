package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// contract checks answers against the OpenAPI document that the server itself
// hands out. It is stricter than the document: a field that the document does
// not have is a fault.
type contract struct {
	schemas map[string]any
	routes  *http.ServeMux // documented paths
	paths   map[string]any
}

type object = map[string]any

func newContract(document []byte) (*contract, error) {
	var doc object
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, err
	}
	c := &contract{
		schemas: doc["components"].(object)["schemas"].(object),
		paths:   doc["paths"].(object), routes: http.NewServeMux(),
	}
	for path, item := range c.paths {
		for method := range item.(object) {
			c.routes.Handle(strings.ToUpper(method)+" "+path, http.NotFoundHandler())
		}
	}
	return c, nil
}

// check returns how the answer to r breaks the contract.
func (c *contract) check(r *http.Request, status int, header http.Header, body []byte) error {
	_, pattern := c.routes.Handler(r)
	if pattern == "" {
		return c.checkProblem(status, header, body)
	}
	_, path, _ := strings.Cut(pattern, " ")
	method := strings.ToLower(r.Method)
	responses := c.paths[path].(object)[method].(object)["responses"].(object)
	response, found := responses[strconv.Itoa(status)].(object)
	if !found && path == "/healthz" && status == http.StatusServiceUnavailable {
		return fmt.Errorf("%s has no response %d", path, status)
	}
	if !found {
		return c.checkProblem(status, header, body)
	}
	content, _ := response["content"].(object)
	if len(content) == 0 && len(body) == 0 {
		return nil
	}
	kind, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	media, found := content[kind].(object)
	if !found {
		return fmt.Errorf("%s %s answers %d as %q, the document has %v", r.Method, path, status, header.Get("Content-Type"), content)
	}
	if kind := header.Get("Content-Type"); !strings.Contains(kind, "json") || kind == "application/x-ndjson" {
		return nil
	}
	return c.checkJSON(media["schema"].(object), body)
}

func (c *contract) checkProblem(status int, header http.Header, body []byte) error {
	if status < 400 {
		return fmt.Errorf("status %d is not in the document", status)
	}
	if kind := header.Get("Content-Type"); kind != "application/problem+json" {
		return fmt.Errorf("an error is sent as %q", kind)
	}
	return c.checkJSON(object{"$ref": "#/components/schemas/Problem"}, body)
}

func (c *contract) checkJSON(schema object, body []byte) error {
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	return c.checkValue("body", schema, value)
}

func (c *contract) checkValue(at string, schema object, value any) error {
	if ref, ok := schema["$ref"].(string); ok {
		resolved, ok := c.schemas[strings.TrimPrefix(ref, "#/components/schemas/")].(object)
		if !ok {
			return fmt.Errorf("%s: %s is not in the document", at, ref)
		}
		schema = resolved
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, value) {
		return fmt.Errorf("%s: %v is none of %v", at, value, enum)
	}
	if either, ok := schema["oneOf"].([]any); ok {
		return c.checkOneOf(at, either, value)
	}
	kind := schema["type"]
	if types, ok := kind.([]any); ok && len(types) == 2 && types[1] == "null" {
		if value == nil {
			return nil
		}
		kind = types[0]
	}
	switch kind {
	case nil: // anything
	case "object":
		return c.checkObject(at, schema, value)
	case "array":
		return c.checkArray(at, schema, value)
	case "string":
		return checkString(at, schema, value)
	case "integer":
		if n, ok := value.(float64); !ok || n != float64(int64(n)) {
			return fmt.Errorf("%s: %v is no integer", at, value)
		}
	case "number":
		if _, ok := value.(float64); !ok {
			return fmt.Errorf("%s: %v is no number", at, value)
		}
	case "boolean":
		if _, ok := value.(bool); !ok {
			return fmt.Errorf("%s: %v is no boolean", at, value)
		}
	default:
		return fmt.Errorf("%s: the document's type %v is not one that is known", at, schema["type"])
	}
	return nil
}

func (c *contract) checkOneOf(at string, either []any, value any) error {
	matches := 0
	for _, schema := range either {
		if c.checkValue(at, schema.(object), value) == nil {
			matches++
		}
	}
	if matches != 1 {
		return fmt.Errorf("%s: %v is %d of the types it may have", at, value, matches)
	}
	return nil
}

func (c *contract) checkObject(at string, schema object, value any) error {
	fields, ok := value.(object)
	if !ok {
		return fmt.Errorf("%s: %v is no object", at, value)
	}
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := fields[name.(string)]; !ok {
			return fmt.Errorf("%s: %s is missing", at, name)
		}
	}
	properties, _ := schema["properties"].(object)
	others, _ := schema["additionalProperties"].(object)
	for name, v := range fields {
		s, known := properties[name].(object)
		if !known {
			s = others
		}
		if s == nil {
			return fmt.Errorf("%s: %s is not in the document", at, name)
		}
		if err := c.checkValue(at+"."+name, s, v); err != nil {
			return err
		}
	}
	return nil
}

func (c *contract) checkArray(at string, schema object, value any) error {
	items, ok := value.([]any)
	if !ok {
		return fmt.Errorf("%s: %v is no array", at, value)
	}
	for i, item := range items {
		if err := c.checkValue(fmt.Sprintf("%s[%d]", at, i), schema["items"].(object), item); err != nil {
			return err
		}
	}
	return nil
}

func checkString(at string, schema object, value any) error {
	s, ok := value.(string)
	if !ok {
		return fmt.Errorf("%s: %v is no string", at, value)
	}
	if schema["format"] != "date-time" {
		return nil
	}
	if _, err := time.Parse(time.RFC3339, s); err != nil || !strings.HasSuffix(s, "Z") {
		return fmt.Errorf("%s: %q is no RFC 3339 time in UTC", at, s)
	}
	return nil
}

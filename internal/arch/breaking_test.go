package arch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// openAPI is the part of an OpenAPI document that clients rely on.
type openAPI struct {
	Paths      map[string]map[string]operation `json:"paths"` // by path and method
	Components struct {
		Schemas map[string]*schema `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	Parameters  []parameter     `json:"parameters,omitempty"`
	RequestBody *body           `json:"requestBody,omitempty"`
	Responses   map[string]body `json:"responses"`
}

type parameter struct {
	In       string  `json:"in"`
	Name     string  `json:"name"`
	Required bool    `json:"required,omitempty"`
	Schema   *schema `json:"schema"`
}

type body struct {
	Required bool             `json:"required,omitempty"`
	Content  map[string]media `json:"content,omitempty"`
	Headers  map[string]any   `json:"headers,omitempty"`
}

type media struct {
	Schema *schema `json:"schema,omitempty"`
}

type schema struct {
	Ref        string             `json:"$ref,omitempty"`
	Type       any                `json:"type,omitempty"` // a name, or a list of them
	Format     string             `json:"format,omitempty"`
	Enum       []any              `json:"enum,omitempty"`
	Properties map[string]*schema `json:"properties,omitempty"`
	Required   []string           `json:"required,omitempty"`
	Items      *schema            `json:"items,omitempty"`
	OneOf      []*schema          `json:"oneOf,omitempty"`
}

// comparison collects the changes from one document to another that break clients.
type comparison struct {
	before, after openAPI
	seen          map[string]bool // pairs of named schemas that were compared
	found         []string
}

// breaking returns the changes from one description of an API to the next that
// break clients of the former, each as "where: what".
func breaking(before, after openAPI) []string {
	c := &comparison{before: before, after: after, seen: map[string]bool{}}
	for _, path := range slices.Sorted(maps.Keys(before.Paths)) {
		if after.Paths[path] == nil {
			c.add(path, "the path is gone")
			continue
		}
		for _, method := range slices.Sorted(maps.Keys(before.Paths[path])) {
			at := strings.ToUpper(method) + " " + path
			now, ok := after.Paths[path][method]
			if !ok {
				c.add(at, "the method is gone")
				continue
			}
			c.operations(at, before.Paths[path][method], now)
		}
	}
	return c.found
}

func (c *comparison) add(at, format string, args ...any) {
	c.found = append(c.found, at+": "+fmt.Sprintf(format, args...))
}

func (c *comparison) operations(at string, was, now operation) {
	for _, p := range was.Parameters {
		q, ok := find(now.Parameters, p)
		if !ok {
			c.add(at, "the %s parameter %s is gone", p.In, p.Name)
			continue
		}
		if q.Required && !p.Required {
			c.add(at, "the %s parameter %s is required", p.In, p.Name)
		}
		c.sent(at+" "+p.Name, p.Schema, q.Schema)
	}
	for _, q := range now.Parameters {
		if _, ok := find(was.Parameters, q); q.Required && !ok {
			c.add(at, "the new %s parameter %s is required", q.In, q.Name)
		}
	}
	c.requests(at+" body", was.RequestBody, now.RequestBody)
	for _, status := range slices.Sorted(maps.Keys(was.Responses)) {
		r, ok := now.Responses[status]
		if !ok {
			c.add(at, "the response %s is gone", status)
			continue
		}
		c.responses(at+" "+status, was.Responses[status], r)
	}
}

func find(all []parameter, p parameter) (parameter, bool) {
	i := slices.IndexFunc(all, func(q parameter) bool { return q.In == p.In && q.Name == p.Name })
	if i < 0 {
		return parameter{}, false
	}
	return all[i], true
}

func (c *comparison) requests(at string, was, now *body) {
	switch {
	case was == nil && now != nil && now.Required:
		c.add(at, "it is required")
	case was == nil:
	case now == nil:
		c.add(at, "it is gone")
	default:
		if now.Required && !was.Required {
			c.add(at, "it is required")
		}
		for _, kind := range slices.Sorted(maps.Keys(was.Content)) {
			m, ok := now.Content[kind]
			if !ok {
				c.add(at, "the type %s is gone", kind)
				continue
			}
			c.sent(at, was.Content[kind].Schema, m.Schema)
		}
	}
}

func (c *comparison) responses(at string, was, now body) {
	for _, header := range slices.Sorted(maps.Keys(was.Headers)) {
		if _, ok := now.Headers[header]; !ok {
			c.add(at, "the header %s is gone", header)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(was.Content)) {
		m, ok := now.Content[kind]
		if !ok {
			c.add(at, "the type %s is gone", kind)
			continue
		}
		c.received(at, was.Content[kind].Schema, m.Schema)
	}
}

// sent compares request schemas: every request that was valid must stay valid.
func (c *comparison) sent(at string, was, now *schema) {
	was, now, ok := c.pair(at, "sent", was, now)
	if !ok {
		return
	}
	for _, name := range now.Required {
		if !slices.Contains(was.Required, name) {
			c.add(at, "%s is required", name)
		}
	}
	for _, value := range was.Enum {
		if len(now.Enum) > 0 && !slices.Contains(now.Enum, value) {
			c.add(at, "the value %v is gone", value)
		}
	}
	if len(was.Enum) == 0 && len(now.Enum) > 0 {
		c.add(at, "only some values are accepted")
	}
	c.within(at, was, now, c.sent)
}

// received compares response schemas: every field that clients read must remain.
func (c *comparison) received(at string, was, now *schema) {
	was, now, ok := c.pair(at, "received", was, now)
	if !ok {
		return
	}
	for _, name := range was.Required {
		if now.Properties[name] != nil && !slices.Contains(now.Required, name) {
			c.add(at, "%s may be absent", name)
		}
	}
	c.within(at, was, now, c.received)
}

// pair resolves references and compares types. ok is false if the parts need no
// comparison.
func (c *comparison) pair(at, direction string, was, now *schema) (_, _ *schema, ok bool) {
	if was == nil || now == nil {
		if was != now {
			c.add(at, "the type is %s, it was %s", typeName(now), typeName(was))
		}
		return nil, nil, false
	}
	if was.Ref != "" && now.Ref != "" {
		key := direction + was.Ref + now.Ref
		if c.seen[key] {
			return nil, nil, false
		}
		c.seen[key] = true
	}
	was, now = c.before.resolve(was), c.after.resolve(now)
	wide, narrow := was, now
	if direction == "sent" { // requests may have more types, answers fewer
		wide, narrow = now, was
	}
	if !includes(wide, narrow) {
		c.add(at, "the type is %s, it was %s", typeName(now), typeName(was))
		return nil, nil, false
	}
	return was, now, true
}

// within compares the parts of two schemas of one type.
func (c *comparison) within(at string, was, now *schema, compare func(at string, was, now *schema)) {
	for _, name := range slices.Sorted(maps.Keys(was.Properties)) {
		if now.Properties[name] == nil {
			c.add(at, "%s is gone", name)
			continue
		}
		compare(at+"."+name, was.Properties[name], now.Properties[name])
	}
	if was.Items != nil || now.Items != nil {
		compare(at+"[]", was.Items, now.Items)
	}
	for i, either := range was.OneOf {
		if i >= len(now.OneOf) {
			c.add(at, "one of its types is gone")
			break
		}
		compare(at, either, now.OneOf[i])
	}
}

func (d openAPI) resolve(s *schema) *schema {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok && d.Components.Schemas[name] != nil {
		return d.Components.Schemas[name]
	}
	return s
}

// includes reports whether each type of narrow is one of wide.
func includes(wide, narrow *schema) bool {
	types := func(s *schema) []any {
		list, isList := s.Type.([]any)
		if !isList {
			list = []any{s.Type}
		}
		return list
	}
	for _, name := range types(narrow) {
		if !slices.Contains(types(wide), name) {
			return false
		}
	}
	return wide.Format == narrow.Format
}

func typeName(s *schema) string {
	if s == nil || s.Type == nil {
		return "anything"
	}
	text, _ := json.Marshal(s.Type)
	if s.Format != "" {
		return s.Format + " " + string(text)
	}
	return string(text)
}

func TestBreakingChanges(t *testing.T) {
	const was = `{"paths": {"/a": {
		"get": {"parameters": [{"in": "query", "name": "q", "schema": {"type": "string", "enum": ["x", "y"]}}],
			"responses": {"200": {"headers": {"Link": {}}, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}}},
		"post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/New"}}}}, "responses": {"201": {}}}},
		"/b": {"get": {"responses": {"200": {}}}}},
		"components": {"schemas": {
			"A": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}, "n": {"type": "integer", "format": "int64"},
				"more": {"type": "array", "items": {"$ref": "#/components/schemas/A"}}}},
			"New": {"type": "object", "properties": {"name": {"type": "string"}, "either": {"oneOf": [{"type": "string"}, {"type": "array"}]}}}}}}`
	cases := map[string]struct{ old, new, want string }{
		"nothing":                     {"", "", ""},
		"a new path":                  {`"/b": {`, `"/c": {"get": {"responses": {}}}, "/b": {`, ""},
		"a new method":                {`"/b": {`, `"/b": {"put": {"responses": {}}, `, ""},
		"a new parameter":             {`"parameters": [`, `"parameters": [{"in": "query", "name": "new", "schema": {"type": "string"}}, `, ""},
		"a new field of an answer":    {`"id": {"type": "string"}, `, `"id": {"type": "string"}, "x": {"type": "string"}, `, ""},
		"a new field of a request":    {`"name": {"type": "string"}`, `"name": {"type": "string"}, "x": {"type": "string"}`, ""},
		"a new value of a request":    {`["x", "y"]`, `["x", "y", "z"]`, ""},
		"a new type of a request":     {`"name": {"type": "string"}`, `"name": {"type": ["string", "null"]}`, ""},
		"a new type of an answer":     {`"n": {"type": "integer"`, `"n": {"type": ["integer", "null"]`, `GET /a 200.n: the type is int64 ["integer","null"], it was int64 "integer"`},
		"a new response":              {`"201": {}`, `"201": {}, "202": {}`, ""},
		"a renamed schema":            {`schemas/New`, `schemas/Other`, "POST /a body: the type is anything, it was \"object\""}, // to one that is not there
		"a path":                      {`"/b": {`, `"/c": {`, "/b: the path is gone"},
		"a method":                    {`"post"`, `"put"`, "POST /a: the method is gone"},
		"a parameter":                 {`"name": "q"`, `"name": "r"`, "GET /a: the query parameter q is gone"},
		"a value of a parameter":      {`["x", "y"]`, `["x"]`, "GET /a q: the value y is gone"},
		"a parameter's type":          {`{"type": "string", "enum": ["x", "y"]}`, `{"type": "integer"}`, `GET /a q: the type is "integer", it was "string"`},
		"a required parameter":        {`"name": "q"`, `"name": "q", "required": true`, "GET /a: the query parameter q is required"},
		"a new required parameter":    {`"parameters": [`, `"parameters": [{"in": "header", "name": "H", "required": true, "schema": {"type": "string"}}, `, "GET /a: the new header parameter H is required"},
		"a response":                  {`"201"`, `"202"`, "POST /a: the response 201 is gone"},
		"a header of a response":      {`"Link"`, `"Other"`, "GET /a 200: the header Link is gone"},
		"a field of an answer":        {`"n": {`, `"m": {`, "GET /a 200: n is gone"},
		"a field's type":              {`"format": "int64"`, `"format": "int32"`, `GET /a 200.n: the type is int32 "integer", it was int64 "integer"`},
		"a field that may be absent":  {`"required": ["id"]`, `"required": []`, "GET /a 200: id may be absent"},
		"a field of a request":        {`"name": {"type": "string"}`, `"title": {"type": "string"}`, "POST /a body: name is gone"},
		"a required field":            {`"New": {"type": "object"`, `"New": {"type": "object", "required": ["name"]`, "POST /a body: name is required"},
		"a required body":             {`"requestBody": {`, `"requestBody": {"required": true, `, "POST /a body: it is required"},
		"a type of a field of types":  {`, {"type": "array"}`, ``, "POST /a body.either: one of its types is gone"},
		"an array's type":             {`"items": {"$ref": "#/components/schemas/A"}`, `"items": {"type": "string"}`, `GET /a 200.more[]: the type is "string", it was "object"`},
		"a body of another type":      {`"requestBody": {"content": {"application/json"`, `"requestBody": {"content": {"text/plain"`, "POST /a body: the type application/json is gone"},
		"a response of another type":  {`"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}`, `"content": {"text/plain": {}}`, "GET /a 200: the type application/json is gone"},
		"fewer values than any":       {`"name": {"type": "string"}`, `"name": {"type": "string", "enum": ["x"]}`, "POST /a body.name: only some values are accepted"},
		"a field of any value before": {`"enum": ["x", "y"]`, `"format": ""`, ""},
	}
	for name, c := range cases {
		text := strings.Replace(was, c.old, c.new, 1)
		if text == was && name != "nothing" {
			t.Fatalf("%s: nothing is replaced", name)
		}
		if got := strings.Join(breaking(parseAPI(t, []byte(was)), parseAPI(t, []byte(text))), "; "); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

package httpapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

const (
	docsPath = "/docs"
	jsonPath = "/openapi.json"
	yamlPath = "/openapi.yaml"
)

// isForReading reports whether path is one that people open in a browser.
func isForReading(path string) bool {
	return path == docsPath || path == jsonPath || path == yamlPath
}

// serveDocs serves the description of the API, which is final now: as OpenAPI,
// and as one plain page that needs no script and nothing from elsewhere.
func (d *door) serveDocs(mux *http.ServeMux, doc *huma.OpenAPI) {
	page, style := renderDocs(doc)
	asJSON, asYAML := must(json.Marshal(doc)), must(doc.YAML())
	mux.HandleFunc("GET "+docsPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy",
			"default-src 'none'; style-src '"+style+"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		w.Header().Set("Referrer-Policy", "no-referrer")
		serve(w, "text/html; charset=utf-8", page)
	})
	mux.HandleFunc("GET "+jsonPath, func(w http.ResponseWriter, _ *http.Request) {
		serve(w, "application/openapi+json", asJSON)
	})
	mux.HandleFunc("GET "+yamlPath, func(w http.ResponseWriter, _ *http.Request) {
		serve(w, "application/openapi+yaml", asYAML)
	})
}

func serve(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(body) // the client has gone: nobody to tell
}

// must is for what depends on this package's source only, and so on no input.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

//go:embed docs.html
var docsHTML string

//go:embed docs.css
var docsCSS string

// docsView is what docs.html shows.
type docsView struct {
	Title, Version, Description string
	Style                       template.CSS
	Groups                      []docsGroup
	Schemas                     []docsSchema
}

// docsGroup is the routes of one noun.
type docsGroup struct {
	Name       string
	Operations []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary string
	Description               []string // paragraphs
	Parameters                []docsField
	Body                      docsType
	Answers                   []docsAnswer
}

type docsAnswer struct {
	Status, Description, ContentType string
	Body                             docsType
}

// docsType is a type as text, and the schema that it leads to, if any.
type docsType struct{ Text, Schema string }

type docsField struct {
	Name, In, Description, Limits string
	Type                          docsType
	Required                      bool
}

type docsSchema struct {
	Name   string
	Fields []docsField
}

// renderDocs returns the page, and the hash that lets a browser apply its style.
func renderDocs(doc *huma.OpenAPI) (page []byte, style string) {
	hash := sha256.Sum256([]byte(docsCSS))
	view := docsView{
		Title: doc.Info.Title, Version: doc.Info.Version, Description: doc.Info.Description,
		Style: template.CSS(docsCSS), Groups: docsGroups(doc), Schemas: docsSchemas(doc),
	}
	var out bytes.Buffer
	t := template.Must(template.New("docs").Parse(docsHTML))
	if err := t.Execute(&out, view); err != nil {
		panic(err) // as must
	}
	return out.Bytes(), "sha256-" + base64.StdEncoding.EncodeToString(hash[:])
}

func docsGroups(doc *huma.OpenAPI) []docsGroup {
	var groups []docsGroup
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		name, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if len(groups) == 0 || groups[len(groups)-1].Name != name {
			groups = append(groups, docsGroup{Name: name})
		}
		group := &groups[len(groups)-1]
		item := doc.Paths[path]
		for _, op := range []*huma.Operation{item.Post, item.Get, item.Put, item.Patch, item.Delete} {
			if op != nil {
				group.Operations = append(group.Operations, docsOperationOf(op))
			}
		}
	}
	return groups
}

func docsOperationOf(op *huma.Operation) docsOperation {
	out := docsOperation{
		ID: op.OperationID, Method: op.Method, Path: op.Path, Summary: op.Summary,
		Description: strings.Split(op.Description, "\n\n"),
	}
	for _, p := range op.Parameters {
		out.Parameters = append(out.Parameters, docsField{
			Name: p.Name, In: p.In, Required: p.Required, Description: p.Description,
			Type: typeOf(p.Schema), Limits: limitsOf(p.Schema),
		})
	}
	if op.RequestBody != nil {
		for _, media := range op.RequestBody.Content { // there is one
			out.Body = typeOf(media.Schema)
		}
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		out.Answers = append(out.Answers, docsAnswerOf(status, op.Responses[status]))
	}
	return out
}

func docsAnswerOf(status string, r *huma.Response) docsAnswer {
	out := docsAnswer{Status: status, Description: r.Description}
	kinds := slices.Sorted(maps.Keys(r.Content))
	out.ContentType = strings.Join(kinds, " or ")
	if len(kinds) > 0 {
		out.Body = typeOf(r.Content[kinds[0]].Schema)
	}
	return out
}

func docsSchemas(doc *huma.OpenAPI) []docsSchema {
	schemas := doc.Components.Schemas.Map()
	var out []docsSchema
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		out = append(out, docsSchema{Name: name, Fields: docsFields(schemas[name])})
	}
	return out
}

func docsFields(s *huma.Schema) []docsField {
	var out []docsField
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		out = append(out, docsField{
			Name: name, Required: slices.Contains(s.Required, name), Description: p.Description,
			Type: typeOf(p), Limits: limitsOf(p),
		})
	}
	return out
}

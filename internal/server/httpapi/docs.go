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
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/internal/access"
)

const (
	docsPath = "/docs"
	jsonPath = "/openapi.json"
	yamlPath = "/openapi.yaml"
)

// isForReading reports whether path is documentation, which users open in a browser.
func isForReading(path string) bool {
	return path == docsPath || path == jsonPath || path == yamlPath
}

// serveDocs serves the finished description of the API: as OpenAPI, and as one plain
// page without scripts and without resources of other sites. Each form is made when it
// is first asked for: that takes longer than the rest of a start.
func (d *door) serveDocs(mux *http.ServeMux, doc *huma.OpenAPI) {
	serve := func(path, kind string, render func() []byte) {
		body := sync.OnceValue(render)
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := checkRight(r.Context(), access.AnyKey); err != nil {
				d.writeProblem(w, r, err)
				return
			}
			h := w.Header()
			h.Set("Content-Type", kind)
			if path == docsPath {
				h.Set("Content-Security-Policy",
					"default-src 'none'; style-src '"+docsStyle()+"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
			}
			_, _ = w.Write(body()) // an error means that the client has disconnected
		})
	}
	serve(docsPath, "text/html; charset=utf-8", func() []byte { return renderDocs(doc) })
	serve(jsonPath, "application/openapi+json", func() []byte { return must(json.Marshal(doc)) })
	serve(yamlPath, "application/openapi+yaml", func() []byte { return must(doc.YAML()) })
}

// must is for results that depend only on this package's source, not on input.
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

// docsView is the data of docs.html.
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

// docsType is a type as text, with the schema that it links to, if any.
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

// docsStyle returns the hash that allows the page's style in the Content-Security-Policy.
func docsStyle() string {
	hash := sha256.Sum256([]byte(docsCSS))
	return "sha256-" + base64.StdEncoding.EncodeToString(hash[:])
}

func renderDocs(doc *huma.OpenAPI) []byte {
	view := docsView{
		Title: doc.Info.Title, Version: doc.Info.Version, Description: doc.Info.Description,
		Style: template.CSS(docsCSS), Groups: docsGroups(doc), Schemas: docsSchemas(doc),
	}
	var out bytes.Buffer
	t := template.Must(template.New("docs").Parse(docsHTML))
	if err := t.Execute(&out, view); err != nil {
		panic(err) // as must
	}
	return out.Bytes()
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

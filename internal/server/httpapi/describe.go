package httpapi

import (
	"context"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
)

var (
	text          = huma.Schema{Type: huma.TypeString}
	binary        = huma.Schema{Type: huma.TypeString, Format: "binary"}
	arrayOfVMs    = arrayOf("VM")
	arrayOfEvents = arrayOf("Event")
)

func arrayOf(schema string) huma.Schema {
	return huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Ref: "#/components/schemas/" + schema}}
}

// register adds a route to the API as op describes it, which it may add to.
type register func(d *door, described huma.API, op huma.Operation)

// add serves a route and describes it in the OpenAPI document.
func (d *door) add(described huma.API, r route) {
	op := huma.Operation{
		Method: r.method, Path: r.path, OperationID: r.id, Summary: r.summary, Description: r.description,
		DefaultStatus: r.status, Middlewares: huma.Middlewares{d.authorize(r.needs), d.refuseConditions},
		// readBody has read, bounded and timed the body already.
		MaxBodyBytes: maxBody + 2, BodyReadTimeout: -1,
		Responses: map[string]*huma.Response{
			strconv.Itoa(r.status): {Description: http.StatusText(r.status)},
			"default":              jsonResponse("Error", problemType, "Problem"),
		},
	}
	op.Extensions = map[string]any{requiredScope: r.needs.String()}
	if r.needs == access.Open {
		op.Security = []map[string][]string{{}}
		d.open[r.path] = true
	}
	d.served[r.method+" "+r.path] = r
	r.register(d, described, op)
	if operationOf(described.OpenAPI().Paths[r.path], r.method).RequestBody != nil {
		d.bodied[r.method+" "+r.path] = true
	}
}

// requiredScope is the extension that says which scope an operation needs: "open" for none
// and no key, "any" for any key.
const requiredScope = "x-required-scope"

// operationOf returns the operation of a path that a method has.
func operationOf(path *huma.PathItem, method string) *huma.Operation {
	return map[string]*huma.Operation{get: path.Get, post: path.Post, put: path.Put, patch: path.Patch, del: path.Delete}[method]
}

func jsonResponse(description, contentType, schema string) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{
		contentType: {Schema: &huma.Schema{Ref: "#/components/schemas/" + schema}},
	}}
}

// on makes a table entry of a handler. Its errors become problems.
func on[I, O any](handle func(context.Context, *I) (*O, error)) register {
	return func(d *door, described huma.API, op huma.Operation) {
		if reflect.TypeFor[O]() == reflect.TypeFor[huma.StreamResponse]() {
			d.streams[op.Method+" "+op.Path] = true
		}
		huma.Register(described, op, func(ctx context.Context, in *I) (*O, error) {
			out, err := handle(ctx, in)
			if err != nil {
				return nil, d.problemOf(ctx, err)
			}
			return out, nil
		})
	}
}

// as describes an answer that the handler's type does not describe.
func as(status, contentType string, schema huma.Schema, add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		op.Responses[status].Content = map[string]*huma.MediaType{contentType: {Schema: &schema}}
		add(d, described, op)
	}
}

// asEvents describes a page of events, or a stream of them.
func asEvents(add register) register {
	return as("200", "application/json", arrayOfEvents, orEvents(add))
}

// orStarted describes the answer to an exec in the background.
func orStarted(add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		op.Responses["200"] = jsonResponse("The command has ended", "application/json", "ExecResult")
		op.Responses["201"] = jsonResponse("The command was started in the background", "application/json", "Exec")
		add(d, described, op)
	}
}

// orUnwell describes the answer of a daemon with a failed part.
func orUnwell(add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		op.Responses["503"] = jsonResponse("Some part of hatchd has failed", "application/json", "Health")
		add(d, described, op)
	}
}

// takes describes a body that is not JSON, and is streamed.
func takes(contentType string, add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		schema := binary
		op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{contentType: {Schema: &schema}}}
		add(d, described, op)
	}
}

// ranged describes an answer to a Range request.
func ranged(add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		schema := binary
		op.Responses["206"] = &huma.Response{Description: "The part that Range asks for", Content: map[string]*huma.MediaType{bytesType: {Schema: &schema}}}
		op.Responses["304"] = &huma.Response{Description: "The file matches If-None-Match or If-Modified-Since"}
		add(d, described, op)
	}
}

// unchanged describes the answer to a client whose copy is current.
func unchanged(add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		op.Responses["304"] = &huma.Response{Description: "The object matches If-None-Match"}
		add(d, described, op)
	}
}

// orEvents describes server-sent events as an alternative.
func orEvents(add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		schema := text
		op.Responses["200"].Content[eventStream] = &huma.MediaType{Schema: &schema}
		add(d, described, op)
	}
}

// IDPath is the input of routes about one object. It is exported for huma,
// which ignores unexported embedded structs.
type IDPath struct {
	ID string `path:"id" doc:"The object's ID."`
}

// answer is the output of most routes.
type answer[T any] struct {
	Body T
}

// created is the output of routes that create an object.
type created[T any] struct {
	Replay
	Location string `header:"Location" doc:"The path of the new object."`
	Body     T
}

// deleted is the output of every DELETE.
func deleted() *answer[api.Deleted] {
	return &answer[api.Deleted]{Body: api.Deleted{Status: "deleted"}}
}

// requestSchemas are the schemas of requests.
var requestSchemas = map[string]bool{
	"CreateVM": true, "CreateImage": true, "BuildImage": true, "WarmImage": true, "CreateTemplate": true,
	"RateLimits": true, "Idle": true, "DiskRateLimit": true, "NetworkRateLimit": true, "CreateKey": true, "CreateUser": true, "UpdateUser": true, "UpdateImage": true, "CreateWebhook": true,
	"UpdateWebhook": true, "CreateRoute": true, "UpdateRoute": true, "RouteAuth": true, "RouteTimeouts": true, "ShareVM": true, "UpdateVM": true, "UpdateTemplate": true, "CreateSnapshot": true, "RestoreVM": true, "ForkVM": true, "MakeDirectory": true,
	"RenameFile": true, "RunExec": true, "SignalExec": true, "ExecInput": true, "TerminalSize": true, "QuotaLimits": true,
}

// tidySchemas corrects the schemas that huma derives: our problem in place of its
// error model, schemas of answers that we encode ourselves, and answers to which
// fields may be added later.
func tidySchemas(doc *huma.OpenAPI) {
	registry := doc.Components.Schemas
	registry.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	registry.Schema(reflect.TypeFor[api.ExecResult](), true, "ExecResult")
	registry.Schema(reflect.TypeFor[api.ExecMessage](), true, "ExecMessage") // in WebSocket messages
	registry.Schema(reflect.TypeFor[api.Event](), true, "Event")             // in answers that we encode
	registry.Schema(reflect.TypeFor[api.AuditRecord](), true, "AuditRecord")
	registry.Schema(reflect.TypeFor[api.FileChange](), true, "FileChange") // in server-sent events
	schemas := registry.Map()
	delete(schemas, "ErrorModel")
	for name, schema := range schemas {
		if !requestSchemas[name] {
			schema.AdditionalProperties = nil
		}
	}
}

// commandSchema is how OpenAPI describes an api.Command.
type commandSchema struct{}

// Schema implements huma.SchemaProvider.
func (commandSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Description: "A line for the guest's /bin/sh, or a program and its arguments.",
		OneOf: []*huma.Schema{
			{Type: huma.TypeString},
			{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}},
		},
	}
}

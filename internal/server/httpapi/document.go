package httpapi

import (
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// tags are the groups of operations, in the order in which generators show them.
var tags = []*huma.Tag{
	{Name: "vms", Description: "VMs: create, power, sleep, fork, metrics, logs and console."},
	{Name: "execs", Description: "Commands in running VMs."},
	{Name: "files", Description: "Files in running VMs."},
	{Name: "routes", Description: "Host names that lead to ports of VMs, and signed links."},
	{Name: "snapshots", Description: "Snapshots of VMs."},
	{Name: "images", Description: "Kernels and root file systems."},
	{Name: "templates", Description: "Defaults for new VMs."},
	{Name: "events", Description: "What has happened, and why."},
	{Name: "webhooks", Description: "Events sent to a URL."},
	{Name: "users", Description: "Users, who own all other objects."},
	{Name: "me", Description: "Who the caller is."},
	{Name: "keys", Description: "API keys of users."},
	{Name: "quotas", Description: "What users own, and may own."},
	{Name: "audit", Description: "Who did what."},
	{Name: "e2b", Description: "The door for the client libraries of E2B."},
	{Name: "healthz", Description: "Whether hatchd and its parts work."},
}

// groupOf returns the group of a path.
func groupOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if len(parts) > 2 && parts[0] == "vms" {
		for _, tag := range tags {
			if tag.Name == strings.TrimSuffix(parts[2], "s")+"s" || tag.Name == "routes" && parts[2] == "share" {
				return tag.Name
			}
		}
	}
	if last := parts[len(parts)-1]; last == "usage" || last == "quota" {
		return "quotas"
	}
	return parts[0]
}

// answerFormats are formats and patterns of fields of answers, by name. They are not in
// the types: huma would check those of requests before the code that has better words.
var answerFormats = map[string]huma.Schema{
	"guest_ip":      {Format: "ipv4"},
	"guest_mac":     {Pattern: "^([0-9A-F]{2}:){5}[0-9A-F]{2}$"},
	"kernel_digest": {Pattern: "^(sha256:[0-9a-f]{64})?$"},
	"rootfs_digest": {Pattern: "^(sha256:[0-9a-f]{64})?$"},
}

// idPatterns are the patterns of id in answers, by their schema.
var idPatterns = map[string]string{
	"VM": "^vm_", "CreatedVM": "^vm_", "Exec": "^exec_", "ExecResult": "^exec_", "Snapshot": "^snap_", "Image": "^img_", "ImageBuild": "^bld_",
	"Template": "^tpl_", "Event": "^evt_", "Webhook": "^whk_", "Route": "^rt_", "Delivery": "^dlv_", "Key": "^key_", "AuditRecord": "^aud_", "User": "^(usr|acc)_",
}

// completeDocument adds what generators of clients ask for and no handler has.
func completeDocument(doc *huma.OpenAPI) {
	doc.Info.License = &huma.License{Name: "Apache 2.0", Identifier: "Apache-2.0"}
	doc.Servers = []*huma.Server{{URL: "http://127.0.0.1:8080", Description: "hatchd on this host, by default; see HATCH_HTTP_ADDR"}}
	doc.Tags = tags
	for path, item := range doc.Paths {
		for _, op := range operationsOf(item) {
			op.Tags = []string{groupOf(path)}
		}
	}
	for name, schema := range doc.Components.Schemas.Map() {
		if requestSchemas[name] {
			describeNull(doc, schema)
		} else {
			describeAnswer(name, schema)
		}
	}
	linkObjects(doc)
}

// describeNull says of the fields of a request that null means the same as no field, as
// many clients send it.
func describeNull(doc *huma.OpenAPI, schema *huma.Schema) {
	for field, property := range schema.Properties {
		if property.Ref != "" {
			property = doc.Components.Schemas.SchemaFromRef(property.Ref)
		}
		answered := len(property.Properties) > 0 && len(property.Required) > 0 // in answers, too, where it is not null
		if slices.Contains(schema.Required, field) || property.Type == "" || property.Nullable || answered {
			continue
		}
		property.Nullable = true
		if len(property.Enum) > 0 {
			property.Enum = append(property.Enum, nil)
		}
	}
}

// linkObjects links operations that make an object to those on it.
func linkObjects(doc *huma.OpenAPI) {
	for path, item := range doc.Paths {
		if item.Post == nil || strings.Contains(path, "{") && path != "/vms/{id}/snapshot" {
			continue
		}
		links := map[string]*huma.Link{}
		of := "/" + groupOf(path) + "/{id}"
		for other, on := range doc.Paths {
			if (other == of || strings.HasPrefix(other, of+"/")) && strings.Count(other, "{") == 1 {
				for _, op := range operationsOf(on) {
					links[op.OperationID] = &huma.Link{OperationID: op.OperationID, Parameters: map[string]any{"id": "$response.body#/id"}}
				}
			}
		}
		item.Post.Responses[strconv.Itoa(item.Post.DefaultStatus)].Links = links
	}
}

func operationsOf(item *huma.PathItem) []*huma.Operation {
	all := []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete}
	return slices.DeleteFunc(all, func(op *huma.Operation) bool { return op == nil })
}

// describeAnswer describes the fields of an answer. Values may be added to any of its
// enums, so they are not listed as the only ones.
func describeAnswer(name string, schema *huma.Schema) {
	for field, property := range schema.Properties {
		known := answerFormats[field]
		property.Format, property.Pattern = property.Format+known.Format, property.Pattern+known.Pattern
		if pattern := idPatterns[name]; field == "id" && pattern != "" {
			property.Pattern = pattern
		}
		if len(property.Enum) > 1 {
			property.Extensions = map[string]any{extensibleEnum: slices.Clone(property.Enum)}
			property.Enum = nil
		}
	}
}

// extensibleEnum is the extension for values that clients must not take for all.
const extensibleEnum = "x-extensible-enum"

package httpapi

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
)

// route is one line of the table.
type route struct {
	method, path string
	status       int // of success
	id           string
	summary      string
	description  string
	register     func(huma.API, huma.Operation)
}

const (
	get   = http.MethodGet
	post  = http.MethodPost
	put   = http.MethodPut
	patch = http.MethodPatch
	del   = http.MethodDelete
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

// routes is every route of the API but the three of docs.go.
func (d *door) routes() []route { return slices.Concat(d.mainRoutes(), d.execRoutes(), d.fileRoutes()) }

func (d *door) mainRoutes() []route {
	return []route{
		{post, "/vms", 201, "create-vm", "Create VM", createText, on(d, d.createVM)},
		{get, "/vms", 200, "list-vms", "List VMs", "Returns the caller's VMs, newest first. The Link header leads to the next page.", as("200", "application/json", arrayOfVMs, on(d, d.listVMs))},
		{get, "/vms/{id}", 200, "get-vm", "Get VM", "Retrieve details of a specific VM.", on(d, d.getVM)},
		{del, "/vms/{id}", 200, "delete-vm", "Delete VM", "Stop and delete a VM, its disk and everything reserved for it.", on(d, d.deleteVM)},
		{post, "/vms/{id}/start", 200, "start-vm", "Start VM", "Start a VM that is stopped, snapshotted or in error. " + waitText, on(d, d.startVM)},
		{post, "/vms/{id}/stop", 200, "stop-vm", "Stop VM", "Gracefully stop a running VM; by force after HATCH_STOP_TIMEOUT. A stopped VM stays as it is.", on(d, d.stopVM)},
		{post, "/vms/{id}/restart", 200, "restart-vm", "Restart VM", "Stop a VM, when it runs, and start it. " + waitText, on(d, d.restartVM)},
		{post, "/vms/{id}/pause", 200, "pause-vm", "Pause VM", "Halt a running VM's CPUs; its memory stays.", on(d, d.pauseVM)},
		{post, "/vms/{id}/resume", 200, "resume-vm", "Resume VM", "Let a paused VM run on.", on(d, d.resumeVM)},
		{post, "/vms/{id}/sleep", 200, "sleep-vm", "Put VM to sleep", "Keep a running VM's memory and end its VMM. The VM becomes snapshotted, and costs no process and, once its memory is on disk, no RAM; address, MAC and SSH port stay reserved. " + wakersText, on(d, d.sleepVM)},
		{post, "/vms/{id}/wake", 200, "wake-vm", "Wake VM", "Let a sleeping VM go on where it stood, or, with wait, until a condition holds. One that runs is returned as it is.", on(d, d.wakeVM)},
		{post, "/vms/{id}/snapshot", 201, "create-snapshot", "Take snapshot", createSnapshotText, on(d, d.createSnapshot)},
		{get, "/vms/{id}/snapshots", 200, "list-vm-snapshots", "List VM snapshots", "Returns the snapshots of one VM, newest first. The VM may be gone, as long as there are any.", on(d, d.listVMSnapshots)},
		{post, "/vms/{id}/restore", 200, "restore-vm", "Restore VM", restoreText, on(d, d.restoreVM)},
		{post, "/vms/{id}/fork", 201, "fork-vm", "Fork VM", forkText, on(d, d.forkVM)},
		{get, "/vms/{id}/wait", 200, "wait-vm", "Wait for VM", waitForText, on(d, d.waitVM)},
		{get, "/vms/{id}/metrics", 200, "vm-metrics", "VM metrics", metricsText, on(d, d.vmMetrics)},
		{get, "/vms/{id}/logs", 200, "vm-logs", "VM logs", vmLogsText, as("200", "text/plain", text, orEvents(on(d, d.vmLogs)))},
		{get, "/vms/{id}/console", 101, "vm-console", "VM console", consoleText, on(d, d.vmConsole)},

		{get, "/vms/{id}/events", 200, "list-vm-events", "List VM events", vmEventsText, asEvents(on(d, d.vmEvents))},

		{get, "/events", 200, "list-events", "List events", eventsText, asEvents(on(d, d.listEvents))},

		{post, "/webhooks", 201, "create-webhook", "Create webhook", createWebhookText, on(d, d.createWebhook)},
		{get, "/webhooks", 200, "list-webhooks", "List webhooks", "Returns all webhooks, without their secrets.", on(d, d.listWebhooks)},
		{get, "/webhooks/{id}", 200, "get-webhook", "Get webhook", "Retrieve details of a specific webhook.", on(d, d.getWebhook)},
		{patch, "/webhooks/{id}", 200, "update-webhook", "Update webhook", "Change a webhook. What is absent stays.", on(d, d.updateWebhook)},
		{del, "/webhooks/{id}", 200, "delete-webhook", "Delete webhook", "Delete a webhook and its deliveries.", on(d, d.deleteWebhook)},
		{post, "/webhooks/{id}/test", 202, "test-webhook", "Test webhook", "Send an event of type webhook.test, and answer with its delivery at once.", on(d, d.testWebhook)},
		{get, "/webhooks/{id}/deliveries", 200, "list-webhook-deliveries", "List webhook deliveries", "Returns the deliveries that are kept, newest first. The Link header leads to the next page.", on(d, d.listDeliveries)},
		{post, "/webhooks/{id}/deliveries/{delivery_id}/retry", 202, "retry-webhook-delivery", "Retry webhook delivery", "Deliver anew, whatever has become of it before.", on(d, d.retryDelivery)},

		{get, "/snapshots", 200, "list-snapshots", "List snapshots", "Returns all snapshots, newest first, those of VMs that are gone too.", on(d, d.listSnapshots)},
		{get, "/snapshots/{id}", 200, "get-snapshot", "Get snapshot", "Retrieve details of a specific snapshot.", on(d, d.getSnapshot)},
		{del, "/snapshots/{id}", 200, "delete-snapshot", "Delete snapshot", "Delete a snapshot. VMs made from it stay.", on(d, d.deleteSnapshot)},

		{post, "/images", 201, "create-image", "Register image", "Register a kernel and a root file system that lie on the host. Both are checked; what cannot boot is refused.", on(d, d.createImage)},
		{get, "/images", 200, "list-images", "List images", "Returns all images, without their paths.", on(d, d.listImages)},
		{get, "/images/{id}", 200, "get-image", "Get image", "Retrieve details of a specific image.", on(d, d.getImage)},
		{del, "/images/{id}", 200, "delete-image", "Delete image", "Forget an image. VMs made from it keep running.", on(d, d.deleteImage)},
		{post, "/images/{id}/warm", 202, "warm-image", "Keep image booted", warmImageText, on(d, d.warmImage)},
		{post, "/images/builds", 202, "start-image-build", "Build image", "Start to build an image and answer at once.", on(d, d.startImageBuild)},
		{get, "/images/builds/{id}", 200, "get-image-build", "Get image build", "How a build stands.", on(d, d.getImageBuild)},
		{get, "/images/builds/{id}/log", 200, "image-build-log", "Image build log", "The build's output as plain text. With follow it goes on until the build ends.", as("200", "text/plain", text, on(d, d.imageBuildLog))},

		{post, "/templates", 201, "create-template", "Create template", "Store default values for new VMs.", on(d, d.createTemplate)},
		{get, "/templates", 200, "list-templates", "List templates", "Returns all templates, without their user_data.", on(d, d.listTemplates)},
		{get, "/templates/{id}", 200, "get-template", "Get template", "Retrieve details of a specific template.", on(d, d.getTemplate)},
		{del, "/templates/{id}", 200, "delete-template", "Delete template", "Delete a template. VMs made from it stay.", on(d, d.deleteTemplate)},

		{post, "/keys", 201, "create-key", "Create API key", "Make an API key. Its secret is in this answer and nowhere else.", on(d, d.createKey)},
		{get, "/keys", 200, "list-keys", "List API keys", "Returns all keys, without their secrets.", on(d, d.listKeys)},
		{del, "/keys/{id}", 200, "delete-key", "Delete API key", "Revoke a key at once.", on(d, d.deleteKey)},

		{get, healthPath, 200, "health", "Health", "Whether every part of the daemon is well. Needs no key.", on(d, d.health)},
	}
}

func (d *door) execRoutes() []route {
	return []route{
		{post, "/vms/{id}/exec", 200, "run-exec", "Run command", runExecText, orStarted(on(d, d.runExec))},
		{get, "/vms/{id}/exec", 101, "stream-exec", "Stream command", streamExecText, on(d, d.streamExec)},
		{get, "/vms/{id}/execs", 200, "list-execs", "List execs", "Returns the commands that the guest knows of, running and ended, newest first. A VM that sleeps is not woken for it.", on(d, d.listExecs)},
		{get, "/vms/{id}/execs/{exec_id}", 200, "get-exec", "Get exec", "How a command stands.", on(d, d.getExec)},
		{del, "/vms/{id}/execs/{exec_id}", 200, "delete-exec", "Delete exec", "Kill a command, with all it started, if it runs, and forget it and its output.", on(d, d.deleteExec)},
		{get, "/vms/{id}/execs/{exec_id}/attach", 101, "attach-exec", "Attach to exec", attachExecText, on(d, d.attachExec)},
		{get, "/vms/{id}/execs/{exec_id}/logs", 200, "exec-logs", "Exec logs", "The command's output so far as plain text, stdout and stderr as they came, as far as the guest keeps it. With follow it goes on until the command ends.", as("200", "text/plain", text, on(d, d.execLogs))},
		{post, "/vms/{id}/execs/{exec_id}/signal", 200, "signal-exec", "Signal exec", "Send a signal to a command and all it started.", on(d, d.signalExec)},
		{post, "/vms/{id}/execs/{exec_id}/stdin", 200, "write-exec", "Write to exec", "Write to a command's stdin, which was started with stdin_open. Answers once the command has taken it.", on(d, d.writeExec)},
		{post, "/vms/{id}/execs/{exec_id}/resize", 200, "resize-exec", "Resize exec", "Change the size of a command's terminal.", on(d, d.resizeExec)},
	}
}

func (d *door) fileRoutes() []route {
	return []route{
		{get, "/vms/{id}/files", 200, "read-file", "Read file", readFileText, ranged(as("200", bytesType, binary, on(d, d.readFile)))},
		{put, "/vms/{id}/files", 200, "write-file", "Write file", writeFileText, takes(bytesType, on(d, d.writeFile))},
		{del, "/vms/{id}/files", 200, "remove-file", "Remove file", "Remove a file or an empty directory of a running VM; with recursive, all that is in it.", on(d, d.removeFile)},
		{get, "/vms/{id}/files/list", 200, "list-files", "List files", "A directory's entries, sorted by name.", as("200", "application/json", arrayOf("File"), on(d, d.listFiles))},
		{get, "/vms/{id}/files/stat", 200, "stat-file", "Stat file", "What a file is. A link is described itself, not what it leads to.", on(d, d.statFile)},
		{post, "/vms/{id}/files/mkdir", 200, "make-directory", "Make directory", "Make a directory in a running VM.", on(d, d.makeDirectory)},
		{post, "/vms/{id}/files/rename", 200, "rename-file", "Rename file", "Move a file or directory within a file system of a running VM. What is at the new path is replaced.", on(d, d.renameFile)},
		{get, "/vms/{id}/files/tar", 200, "read-tree", "Read tree", readTreeText, as("200", tarType, binary, on(d, d.readTree))},
		{put, "/vms/{id}/files/tar", 200, "write-tree", "Write tree", writeTreeText, takes(tarType, on(d, d.writeTree))},
		{get, "/vms/{id}/files/watch", 200, "watch-files", "Watch files", watchFilesText, as("200", eventStream, text, on(d, d.watchFiles))},
	}
}

// operation returns the route as OpenAPI describes it.
func (r route) operation() huma.Operation {
	op := huma.Operation{
		Method: r.method, Path: r.path, OperationID: r.id, Summary: r.summary, Description: r.description,
		DefaultStatus: r.status,
		// readBody has read, bounded and timed the body already.
		MaxBodyBytes: maxBody + 2, BodyReadTimeout: -1,
		Responses: map[string]*huma.Response{
			strconv.Itoa(r.status): {Description: http.StatusText(r.status)},
			"default":              jsonResponse("Error", problemType, "Problem"),
		},
	}
	if r.path == healthPath {
		op.Security = []map[string][]string{{}}
		op.Responses["503"] = jsonResponse("Some part is not well", "application/json", "Health")
	}
	return op
}

func jsonResponse(description, contentType, schema string) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{
		contentType: {Schema: &huma.Schema{Ref: "#/components/schemas/" + schema}},
	}}
}

// on fits a handler into the table. Its errors become problems.
func on[I, O any](d *door, handle func(context.Context, *I) (*O, error)) func(huma.API, huma.Operation) {
	return func(described huma.API, op huma.Operation) {
		huma.Register(described, op, func(ctx context.Context, in *I) (*O, error) {
			out, err := handle(ctx, in)
			if err != nil {
				return nil, d.problemOf(ctx, err)
			}
			return out, nil
		})
	}
}

// as describes what a handler answers with where its type does not tell.
func as(status, contentType string, schema huma.Schema, register func(huma.API, huma.Operation)) func(huma.API, huma.Operation) {
	return func(described huma.API, op huma.Operation) {
		op.Responses[status].Content = map[string]*huma.MediaType{contentType: {Schema: &schema}}
		register(described, op)
	}
}

// asEvents describes an answer that is a page of events, or a stream of them.
func asEvents(register func(huma.API, huma.Operation)) func(huma.API, huma.Operation) {
	return as("200", "application/json", arrayOfEvents, orEvents(register))
}

// orStarted describes that the answer is an exec when it was only started.
func orStarted(register func(huma.API, huma.Operation)) func(huma.API, huma.Operation) {
	return func(described huma.API, op huma.Operation) {
		op.Responses["200"] = jsonResponse("The command has ended", "application/json", "ExecResult")
		op.Responses["201"] = jsonResponse("The command was started in the background", "application/json", "Exec")
		register(described, op)
	}
}

// takes describes a body that is no JSON, and is read as it comes.
func takes(contentType string, register func(huma.API, huma.Operation)) func(huma.API, huma.Operation) {
	return func(described huma.API, op huma.Operation) {
		schema := binary
		op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{contentType: {Schema: &schema}}}
		register(described, op)
	}
}

// ranged describes that a part can be asked for.
func ranged(register func(huma.API, huma.Operation)) func(huma.API, huma.Operation) {
	return func(described huma.API, op huma.Operation) {
		schema := binary
		op.Responses["206"] = &huma.Response{Description: "The part that Range asks for", Content: map[string]*huma.MediaType{bytesType: {Schema: &schema}}}
		op.Responses["304"] = &huma.Response{Description: "The file is the one of If-None-Match"}
		register(described, op)
	}
}

// orEvents describes that the answer is server-sent events when they are asked for.
func orEvents(register func(huma.API, huma.Operation)) func(huma.API, huma.Operation) {
	return func(described huma.API, op huma.Operation) {
		schema := text
		op.Responses["200"].Content[eventStream] = &huma.MediaType{Schema: &schema}
		register(described, op)
	}
}

// IDPath is the input of routes about one object. It is exported for huma,
// which looks into no other embedded struct.
type IDPath struct {
	ID string `path:"id" doc:"The object's ID."`
}

// answer is the output of most routes.
type answer[T any] struct {
	Body T
}

// created is the output of routes that make an object.
type created[T any] struct {
	Location string `header:"Location" doc:"The path of the new object."`
	Body     T
}

// deleted is the output of every DELETE.
func deleted() *answer[api.Deleted] {
	return &answer[api.Deleted]{Body: api.Deleted{Status: "deleted"}}
}

// tidySchemas sets right what huma derives otherwise: our problem in place of
// its own error, and answers to which fields may be added later.
func tidySchemas(doc *huma.OpenAPI) {
	registry := doc.Components.Schemas
	registry.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	registry.Schema(reflect.TypeFor[api.ExecResult](), true, "ExecResult")
	registry.Schema(reflect.TypeFor[api.ExecMessage](), true, "ExecMessage") // in messages, which we write ourselves
	registry.Schema(reflect.TypeFor[api.Event](), true, "Event")             // in answers that we write ourselves
	registry.Schema(reflect.TypeFor[api.FileChange](), true, "FileChange")   // in events, which we write ourselves
	schemas := registry.Map()
	delete(schemas, "ErrorModel")
	asked := map[string]bool{"CreateVM": true, "CreateImage": true, "BuildImage": true, "WarmImage": true, "CreateTemplate": true, "RateLimits": true, "DiskRateLimit": true, "NetworkRateLimit": true, "CreateKey": true, "CreateWebhook": true, "UpdateWebhook": true, "CreateSnapshot": true, "RestoreVM": true, "ForkVM": true, "MakeDirectory": true, "RenameFile": true, "RunExec": true, "SignalExec": true, "ExecInput": true, "TerminalSize": true}
	for name, schema := range schemas {
		if !asked[name] {
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

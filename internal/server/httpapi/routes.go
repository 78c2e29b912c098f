package httpapi

import (
	"net/http"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
)

// route is one line of the table.
type route struct {
	method, path string
	needs        access.Right
	status       int // of success
	id           string
	summary      string
	description  string
	register     register
}

const (
	get   = http.MethodGet
	post  = http.MethodPost
	put   = http.MethodPut
	patch = http.MethodPatch
	del   = http.MethodDelete
)

func (h *vmHandlers) routes() []route {
	return []route{
		{post, "/vms", access.Write(access.VMs), 201, "create-vm", "Create VM", createText, once(h.create, h.replay)},
		{get, "/vms", access.Read(access.VMs), 200, "list-vms", "List VMs", "Returns the caller's VMs, newest first. The Link header has the next page.", as("200", "application/json", arrayOfVMs, on(h.list))},
		{get, "/vms/{id}", access.Read(access.VMs), 200, "get-vm", "Get VM", "Retrieve details of a specific VM.", unchanged(on(h.get))},
		{patch, "/vms/{id}", access.Write(access.VMs), 200, "update-vm", "Update VM", updateText, patches[api.UpdateVM](on(h.update))},
		{del, "/vms/{id}", access.Write(access.VMs), 200, "delete-vm", "Delete VM", "Stop a VM and delete it, with its disk and its reservations.", on(h.delete)},
		{post, "/vms/{id}/start", access.Write(access.VMs), 200, "start-vm", "Start VM", "Start a VM that is stopped, snapshotted or in error. " + waitText, on(h.start)},
		{post, "/vms/{id}/stop", access.Write(access.VMs), 200, "stop-vm", "Stop VM", "Gracefully stop a running VM; kill it after the timeout. A stopped VM is not changed.", on(h.stop)},
		{post, "/vms/{id}/restart", access.Write(access.VMs), 200, "restart-vm", "Restart VM", "Stop a VM if it is running, and start it. " + waitText, on(h.restart)},
		{post, "/vms/{id}/pause", access.Write(access.VMs), 200, "pause-vm", "Pause VM", "Halt a running VM's CPUs; its memory stays.", on(h.pause)},
		{post, "/vms/{id}/resume", access.Write(access.VMs), 200, "resume-vm", "Resume VM", "Resume a paused VM's CPUs.", on(h.resume)},
		{post, "/vms/{id}/sleep", access.Write(access.VMs), 200, "sleep-vm", "Put VM to sleep", "Save a running VM's memory and end its VMM. The VM becomes snapshotted and uses no process and, once its memory is on disk, no RAM; address, MAC and SSH port stay reserved. " + wakersText, on(h.sleep)},
		{post, "/vms/{id}/wake", access.Write(access.VMs), 200, "wake-vm", "Wake VM", "Continue a sleeping VM where it was; with wait=ready the response comes once its guest is ready. A running VM is returned as it is.", on(h.wake)},
		{post, "/vms/{id}/restore", access.Write(access.VMs), 200, "restore-vm", "Restore VM", restoreText, on(h.restore)},
		{post, "/vms/{id}/fork", access.Write(access.VMs), 201, "fork-vm", "Fork VM", forkText, once(h.fork, h.replayFork)},
		{get, "/vms/{id}/wait", access.Read(access.VMs), 200, "wait-vm", "Wait for VM", waitForText, on(h.wait)},
		{get, "/vms/{id}/metrics", access.Read(access.VMs), 200, "vm-metrics", "VM metrics", metricsText, on(h.metrics)},
	}
}

func (h *outputHandlers) routes() []route {
	return []route{
		{get, "/vms/{id}/logs", access.Read(access.VMs), 200, "vm-logs", "VM logs", vmLogsText, as("200", "text/plain", text, orEvents(on(h.logs)))},
		{get, "/vms/{id}/console", access.Write(access.Exec), 101, "vm-console", "VM console", consoleText, on(h.console)},
	}
}

func (h *tunnelHandlers) routes() []route {
	return []route{
		{get, "/vms/{id}/tunnel", access.Write(access.Exec), 101, "vm-tunnel", "Tunnel to a port", tunnelText, on(h.open)},
	}
}

func (h *snapshotHandlers) routes() []route {
	return []route{
		{post, "/vms/{id}/snapshot", access.Write(access.Snapshots), 201, "create-snapshot", "Take snapshot", createSnapshotText, once(h.create, h.replay)},
		{get, "/vms/{id}/snapshots", access.Read(access.Snapshots), 200, "list-vm-snapshots", "List VM snapshots", "Returns the snapshots of one VM, newest first, also of a deleted VM.", on(h.listOfVM)},
		{get, "/snapshots", access.Read(access.Snapshots), 200, "list-snapshots", "List snapshots", "Returns all snapshots, newest first, also of deleted VMs.", on(h.list)},
		{get, "/snapshots/{id}", access.Read(access.Snapshots), 200, "get-snapshot", "Get snapshot", "Retrieve details of a specific snapshot.", on(h.get)},
		{del, "/snapshots/{id}", access.Write(access.Snapshots), 200, "delete-snapshot", "Delete snapshot", "Delete a snapshot. VMs made from it stay.", on(h.delete)},
	}
}

func (h *execHandlers) routes() []route {
	return []route{
		{post, "/vms/{id}/exec", access.Write(access.Exec), 200, "run-exec", "Run command", runExecText, orStarted(once(h.run, h.replay))},
		{get, "/vms/{id}/exec", access.Write(access.Exec), 101, "stream-exec", "Stream command", streamExecText, on(h.stream)},
		{get, "/vms/{id}/execs", access.Read(access.Exec), 200, "list-execs", "List execs", "Returns the guest's commands, running and ended, newest first. A sleeping VM is not woken.", on(h.list)},
		{get, "/vms/{id}/execs/{exec_id}", access.Read(access.Exec), 200, "get-exec", "Get exec", "Retrieve the state of a command.", on(h.get)},
		{del, "/vms/{id}/execs/{exec_id}", access.Write(access.Exec), 200, "delete-exec", "Delete exec", "Kill a command and its descendants if it is running, and delete it and its output.", on(h.delete)},
		{get, "/vms/{id}/execs/{exec_id}/attach", access.Write(access.Exec), 101, "attach-exec", "Attach to exec", attachExecText, on(h.attach)},
		{get, "/vms/{id}/execs/{exec_id}/logs", access.Read(access.Exec), 200, "exec-logs", "Exec logs", "The command's output so far as plain text, stdout and stderr interleaved, as far as the guest keeps it. With follow it continues until the command ends.", as("200", "text/plain", text, on(h.logs))},
		{post, "/vms/{id}/execs/{exec_id}/signal", access.Write(access.Exec), 200, "signal-exec", "Signal exec", "Send a signal to a command and its descendants.", on(h.signal)},
		{post, "/vms/{id}/execs/{exec_id}/stdin", access.Write(access.Exec), 200, "write-exec", "Write to exec", "Write to the stdin of a command that was started with stdin_open. The response comes once the command has read it.", on(h.writeStdin)},
		{post, "/vms/{id}/execs/{exec_id}/resize", access.Write(access.Exec), 200, "resize-exec", "Resize exec", "Change the size of a command's terminal.", on(h.resize)},
	}
}

func (h *fileHandlers) routes() []route {
	return []route{
		{get, "/vms/{id}/files", access.Read(access.Files), 200, "read-file", "Read file", readFileText, ranged(as("200", bytesType, binary, on(h.read)))},
		{put, "/vms/{id}/files", access.Write(access.Files), 200, "write-file", "Write file", writeFileText, takes(bytesType, on(h.write))},
		{del, "/vms/{id}/files", access.Write(access.Files), 200, "remove-file", "Remove file", "Remove a file or an empty directory of a running VM; with recursive, a directory and everything in it.", on(h.remove)},
		{get, "/vms/{id}/files/list", access.Read(access.Files), 200, "list-files", "List files", "A directory's entries, sorted by name.", as("200", "application/json", arrayOf("File"), on(h.list))},
		{get, "/vms/{id}/files/stat", access.Read(access.Files), 200, "stat-file", "Stat file", "Describe a file. Symbolic links are not followed.", on(h.stat)},
		{post, "/vms/{id}/files/mkdir", access.Write(access.Files), 200, "make-directory", "Make directory", "Make a directory in a running VM.", on(h.makeDirectory)},
		{post, "/vms/{id}/files/rename", access.Write(access.Files), 200, "rename-file", "Rename file", "Move a file or directory within a file system of a running VM. A file at the new path is replaced.", on(h.rename)},
		{get, "/vms/{id}/files/tar", access.Read(access.Files), 200, "read-tree", "Read tree", readTreeText, as("200", tarType, binary, on(h.readTree))},
		{put, "/vms/{id}/files/tar", access.Write(access.Files), 200, "write-tree", "Write tree", writeTreeText, takes(tarType, on(h.writeTree))},
		{get, "/vms/{id}/files/watch", access.Read(access.Files), 200, "watch-files", "Watch files", watchFilesText, as("200", eventStream, text, on(h.watch))},
	}
}

func (h *eventHandlers) routes() []route {
	return []route{
		{get, "/vms/{id}/events", access.Read(access.Events), 200, "list-vm-events", "List VM events", vmEventsText, asEvents(on(h.listOfVM))},
		{get, "/events", access.Read(access.Events), 200, "list-events", "List events", eventsText, asEvents(on(h.list))},
	}
}

func (h *webhookHandlers) routes() []route {
	return []route{
		{post, "/webhooks", access.Write(access.Webhooks), 201, "create-webhook", "Create webhook", createWebhookText, once(h.create, replayed[createWebhookInput]("/webhooks/", byIDAlone(h.get)))},
		{get, "/webhooks", access.Read(access.Webhooks), 200, "list-webhooks", "List webhooks", "Returns all webhooks, without their secrets.", on(h.list)},
		{get, "/webhooks/{id}", access.Read(access.Webhooks), 200, "get-webhook", "Get webhook", "Retrieve details of a specific webhook.", unchanged(on(h.get))},
		{patch, "/webhooks/{id}", access.Write(access.Webhooks), 200, "update-webhook", "Update webhook", "Change a webhook, by a JSON merge patch: absent fields stay, null removes one.", patches[api.UpdateWebhook](on(h.update))},
		{del, "/webhooks/{id}", access.Write(access.Webhooks), 200, "delete-webhook", "Delete webhook", "Delete a webhook and its deliveries.", on(h.delete)},
		{post, "/webhooks/{id}/test", access.Write(access.Webhooks), 202, "test-webhook", "Test webhook", "Send an event of type webhook.test. The response has its delivery, and does not wait for it.", once(h.test, h.replayTest)},
		{get, "/webhooks/{id}/deliveries", access.Read(access.Webhooks), 200, "list-webhook-deliveries", "List webhook deliveries", "Returns the stored deliveries, newest first. The Link header has the next page.", on(h.listDeliveries)},
		{post, "/webhooks/{id}/deliveries/{delivery_id}/retry", access.Write(access.Webhooks), 202, "retry-webhook-delivery", "Retry webhook delivery", "Send a delivery again, in any state.", on(h.retryDelivery)},
	}
}

func (h *routeHandlers) routes() []route {
	return []route{
		{post, "/vms/{id}/routes", access.Write(access.Routes), 201, "create-route", "Create route", createRouteText, once(h.create, replayed[createRouteInput]("/routes/", byIDAlone(h.get)))},
		{get, "/vms/{id}/routes", access.Read(access.Routes), 200, "list-vm-routes", "List VM routes", "Returns the routes to one VM, newest first.", on(h.listOfVM)},
		{get, "/routes", access.Read(access.Routes), 200, "list-routes", "List routes", "Returns the routes to all VMs, newest first.", on(h.list)},
		{get, "/routes/{id}", access.Read(access.Routes), 200, "get-route", "Get route", "Retrieve details of a specific route.", unchanged(on(h.get))},
		{patch, "/routes/{id}", access.Write(access.Routes), 200, "update-route", "Update route", "Change a route, by a JSON merge patch: absent fields stay, null removes one. The VM and a domain cannot be changed.", patches[api.UpdateRoute](on(h.update))},
		{del, "/routes/{id}", access.Write(access.Routes), 200, "delete-route", "Delete route", "Delete a route. Its name leads nowhere from then on.", on(h.delete)},
		{post, "/routes/{id}/verify", access.Write(access.Routes), 200, "verify-route", "Verify route", "Look for the proof of the route's domain in the DNS. From then on the domain is served. A route that is verified, or made by a key with the scope admin, is returned as it is.", on(h.verify)},
		{post, "/vms/{id}/share", access.Write(access.Routes), 200, "share-vm", "Share VM", shareText, on(h.share)},
		{del, "/vms/{id}/share", access.Write(access.Routes), 200, "end-shares", "End shares", "End all signed links to a VM, and the cookies of browsers that have followed them.", on(h.endShares)},
	}
}

func (h *imageHandlers) routes() []route {
	return []route{
		{post, "/images", access.Admin, 201, "create-image", "Register image", "Register a kernel and a root file system that are files on the host. Both are checked; an image that cannot boot is refused.", once(h.create, replayed[createImageInput]("/images/", byID(h.get)))},
		{get, "/images", access.Read(access.Images), 200, "list-images", "List images", "Returns all images, without their paths.", on(h.list)},
		{get, "/images/{id}", access.Read(access.Images), 200, "get-image", "Get image", "Retrieve details of a specific image.", on(h.get)},
		{patch, "/images/{id}", access.Write(access.Images), 200, "update-image", "Update image", "Change who sees an image, by a JSON merge patch: absent fields stay. Only its owner and admins may.", patches[api.UpdateImage](on(h.update))},
		{del, "/images/{id}", access.Write(access.Images), 200, "delete-image", "Delete image", "Delete an image. Running VMs are not affected.", on(h.delete)},
		{post, "/images/{id}/warm", access.Write(access.Images), 202, "warm-image", "Add image to warm pool", warmImageText, on(h.keepWarm)},
		{post, "/images/builds", access.Admin, 202, "start-image-build", "Build image", "Start to build an image. The response does not wait for the build.", once(h.startBuild, replayed[startImageBuildInput]("/images/builds/", byID(h.getBuild)))},
		{get, "/images/builds/{id}", access.Read(access.Images), 200, "get-image-build", "Get image build", "Retrieve the state of a build.", on(h.getBuild)},
		{get, "/images/builds/{id}/log", access.Read(access.Images), 200, "image-build-log", "Image build log", "The build's output as plain text. With follow it continues until the build ends.", as("200", "text/plain", text, on(h.buildLog))},
	}
}

func (h *templateHandlers) routes() []route {
	return []route{
		{post, "/templates", access.Write(access.Templates), 201, "create-template", "Create template", "Store default values for new VMs.", once(h.create, replayed[createTemplateInput]("/templates/", byIDAlone(h.get)))},
		{get, "/templates", access.Read(access.Templates), 200, "list-templates", "List templates", "Returns all templates, without their user_data.", on(h.list)},
		{get, "/templates/{id}", access.Read(access.Templates), 200, "get-template", "Get template", "Retrieve details of a specific template.", unchanged(on(h.get))},
		{patch, "/templates/{id}", access.Write(access.Templates), 200, "update-template", "Update template", "Change a template, by a JSON merge patch: absent fields stay, null removes one. VMs made from it stay as they are.", patches[api.UpdateTemplate](on(h.update))},
		{del, "/templates/{id}", access.Write(access.Templates), 200, "delete-template", "Delete template", "Delete a template. VMs made from it stay.", on(h.delete)},
	}
}

func (h *keyHandlers) routes() []route {
	return []route{
		{post, "/keys", access.Write(access.Keys), 201, "create-key", "Create API key", createKeyText, once(h.create, replayed[createKeyInput]("/keys/", byID(h.get)))},
		{get, "/keys", access.Read(access.Keys), 200, "list-keys", "List API keys", listKeysText, on(h.list)},
		{del, "/keys/{id}", access.Write(access.Keys), 200, "delete-key", "Delete API key", deleteKeyText, on(h.delete)},
	}
}

func (h *e2bHandler) routes() []route {
	return []route{
		{get, "/e2b", access.AnyKey, 200, "get-e2b", "Get E2B door", "Where the client libraries of E2B reach this server. 501 if HATCH_E2B_ADDR is off.", on(h.get)},
	}
}

func (h *userHandlers) routes() []route {
	return []route{
		{post, "/users", access.Write(access.Users), 201, "create-user", "Create user", "Create a user. For admins only, as all requests about users. Give it a key with POST /keys and user_id.", once(h.create, replayed[createUserInput]("/users/", byIDAlone(h.get)))},
		{get, "/users", access.Read(access.Users), 200, "list-users", "List users", "Returns all users.", on(h.list)},
		{get, "/users/{id}", access.Read(access.Users), 200, "get-user", "Get user", "Retrieve details of a specific user.", unchanged(on(h.get))},
		{patch, "/users/{id}", access.Write(access.Users), 200, "update-user", "Update user", updateUserText, patches[api.UpdateUser](on(h.update))},
		{del, "/users/{id}", access.Write(access.Users), 200, "delete-user", "Delete user", deleteUserText, on(h.delete)},
		{get, "/me", access.AnyKey, 200, "get-me", "Get me", "Returns who the caller is, and what its key can be used for.", on(h.me)},
	}
}

func (h *healthHandler) routes() []route {
	return []route{
		{get, healthPath, access.Open, 200, "health", "Health", "Whether every part of hatchd works. Needs no key.", orUnwell(on(h.get))},
	}
}

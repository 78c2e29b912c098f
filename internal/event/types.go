package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// Type is the type of an event: a noun and a verb with a dot between.
type Type string

// The types of events. A new one needs a line in [Types].
const (
	VMCreated          Type = "vm.created"
	VMStateChanged     Type = "vm.state_changed"
	VMConditionChanged Type = "vm.condition_changed"
	VMUpdated          Type = "vm.updated"
	VMOperation        Type = "vm.operation"
	VMRebooted         Type = "vm.rebooted"
	VMSlept            Type = "vm.slept"
	VMWoke             Type = "vm.woke"
	VMWakeSuspended    Type = "vm.wake_suspended"
	VMWakeResumed      Type = "vm.wake_resumed"
	VMExpired          Type = "vm.expired"
	VMDeleted          Type = "vm.deleted"
	SnapshotCreated    Type = "snapshot.created"
	SnapshotDeleted    Type = "snapshot.deleted"
	RouteCreated       Type = "route.created"
	RouteUpdated       Type = "route.updated"
	RouteDeleted       Type = "route.deleted"
	RouteUnproven      Type = "route.domain_unproven"
	ImageWarmFailed    Type = "image.warm_failed"
	WebhookFailed      Type = "webhook.delivery_failed"
	WebhookDisabled    Type = "webhook.disabled"
	WebhookTest        Type = "webhook.test"
	LogGap             Type = "log.gap"
)

// About describes an event type for the reference.
type About struct {
	Type Type
	Doc  string // one sentence
	Data string // the fields of its data
}

const snapshotData = "`snapshot_id`, `name`; `kind`: `manual` or `automatic`; `bytes`: on the host's disk; `parent_id`: the snapshot that the VM was last restored to or cloned from"

const routeData = "`route_id`; `subdomain` or `domain`; `target_port`"

// Types lists all event types.
func Types() []About {
	return []About{
		{VMCreated, "A VM was created and is starting.", "`image_id`, `template_id`, `vcpu_count`, `mem_mib`, `disk_mib`, `vmm`; of a clone also `cloned_from_vm_id`, and `snapshot_id` unless it is a fork"},
		{VMStateChanged, "The state of a VM, or its reason, changed.", "`from`, `to`: states; `reason`: a sentence"},
		{VMConditionChanged, "A condition of a guest changed.", "`condition`: `network_ready`, `agent_ready`, `vmm_healthy` or `cloud_init_done`; `from`, `to`: `true`, `false` or `unknown`; `reason`: one word; `message`: a sentence"},
		{VMUpdated, "The owner changed what a VM is called, or what it is made of.", "`fields`: those that changed, such as `name` or `mem_mib`"},
		{VMOperation, "An operation on a VM has ended: of a client, or of `hatchd`, as when the host goes down and when it has started again.", "`operation`: `create`, `start`, `stop`, `restart`, `pause`, `resume`, `sleep`, `wake`, `snapshot`, `restore`, `fork`, `delete`, `resize` or `reboot` (by the guest); `outcome`: `succeeded` or `failed`; `duration_ms`; `error`, `code`: why it failed"},
		{VMRebooted, "A guest rebooted: its agent reported a new boot id, or its VMM ended with a reset (on Firecracker) and was started again.", "–"},
		{VMSlept, "A VM fell asleep, on request or by a rule.", "`rule`: `request`, `idle`, `expiry`, `memory_pressure` or `host_shutdown`; `duration_ms`; `last_activity`: `at`, `cause` and `peer`, if known"},
		{VMWoke, "A sleeping VM was woken, on request or by a use of it.", "`cause`: `request`, or the use, such as `ssh` or `exec`; `peer`: who used it, if known; `duration_ms`"},
		{VMWakeSuspended, "A sleeping VM could not be woken several times in a row, and uses of it do not wake it any more, until it is woken or started on request.", "`failures`: in a row; `error`, `code`: of the last one"},
		{VMWakeResumed, "Uses of a VM wake it again: it was woken or started on request after that.", "–"},
		{VMExpired, "The time of a VM had passed, and it was stopped, put to sleep or deleted.", "`expires_at`; `action`: `stop`, `sleep` or `delete`"},
		{VMDeleted, "A VM was deleted, with its disk and its reservations.", "–"},
		{SnapshotCreated, "A snapshot of a VM was taken and is durable.", snapshotData},
		{SnapshotDeleted, "A snapshot was deleted, with its files.", snapshotData},
		{RouteCreated, "A route to a VM was created.", routeData},
		{RouteUpdated, "A route was changed, or its domain was verified.", routeData},
		{RouteDeleted, "A route was deleted, alone or with its VM.", routeData},
		{RouteUnproven, "The daily check of a domain found no TXT record with its proof, or another owner has proved the domain meanwhile.", "`route_id`, `domain`; `missed`: how many checks in a row; `served`: whether the domain still leads to the VM"},
		{ImageWarmFailed, "A warm snapshot of an image could not be built, or a VM not be cloned from it: new VMs of that shape boot until it is tried again. For the image's owner.", "`image_id`, `vcpu_count`, `mem_mib`, `disk_mib`; `error`: a sentence; `retry_at`"},
		{WebhookFailed, "A delivery failed: its last attempt failed, or the receiver answered 410 Gone. Not sent to webhooks.", "`webhook_id`, `delivery_id`, `event_id`, `attempts`, `status_code`, `error`"},
		{WebhookDisabled, "A webhook was disabled because its receiver answered 410 Gone. Not sent to webhooks.", "`webhook_id`"},
		{WebhookTest, "A test of a webhook was requested. The event is not in the event log and is sent only to that webhook.", "`webhook_id`"},
		{LogGap, "Events after the position, or since the time, at which a reader begins have been removed, because they were too old or too many. It is in no log: it is the first event of the page or stream, for any `type` that is asked for. Not sent to webhooks.", "`after`: the reader's position; `through`: the `seq` of the last event that was removed"},
	}
}

// Reference returns the table of types in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString("| Type | When | Data |\n|---|---|---|\n")
	for _, a := range Types() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", a.Type, a.Doc, a.Data)
	}
	return b.String()
}

// Pattern matches event types: one type, a prefix such as "vm.*", or "*" for all.
type Pattern string

// Matches reports whether the pattern matches t.
func (p Pattern) Matches(t Type) bool {
	if prefix, ok := p.Prefix(); ok {
		return strings.HasPrefix(string(t), prefix)
	}
	return string(p) == string(t)
}

// Prefix returns the pattern without its star, and whether it has one.
func (p Pattern) Prefix() (prefix string, starred bool) {
	return strings.CutSuffix(string(p), "*")
}

// maxPatterns bounds the patterns of one request.
const maxPatterns = 32

// ParsePatterns validates the patterns in a field of a request. A pattern that
// matches no event type is an error: it is a typing mistake.
func ParsePatterns(field string, given []string) ([]Pattern, error) {
	if len(given) > maxPatterns {
		return nil, errs.InvalidField(field, "has more than %d types", maxPatterns)
	}
	patterns := make([]Pattern, len(given))
	for i, text := range given {
		p := Pattern(text)
		if prefix, starred := p.Prefix(); starred && prefix != "" && !strings.HasSuffix(prefix, ".") || !p.matchesAny() {
			return nil, errs.InvalidField(field, "%q is not an event type: want one such as %s, vm.* or *", short(text), VMStateChanged)
		}
		patterns[i] = p
	}
	return patterns, nil
}

func (p Pattern) matchesAny() bool {
	return slices.ContainsFunc(Types(), func(a About) bool { return p.Matches(a.Type) })
}

// short cuts a text for use in an error.
func short(text string) string {
	const most = 64 // bytes
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

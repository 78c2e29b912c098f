package event

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// Type says what has happened, in words with dots between.
type Type string

// The types of events. A new one needs a line in [Types].
const (
	VMCreated          Type = "vm.created"
	VMStateChanged     Type = "vm.state_changed"
	VMConditionChanged Type = "vm.condition_changed"
	VMOperation        Type = "vm.operation"
	VMRebooted         Type = "vm.rebooted"
	VMDeleted          Type = "vm.deleted"
	SnapshotCreated    Type = "snapshot.created"
	SnapshotDeleted    Type = "snapshot.deleted"
	WebhookFailed      Type = "webhook.delivery_failed"
	WebhookDisabled    Type = "webhook.disabled"
	WebhookTest        Type = "webhook.test"
)

// About describes a type of event for the reference.
type About struct {
	Type Type
	Doc  string // one sentence
	Data string // the fields of its data
}

const snapshotData = "`snapshot_id`, `name`; `kind`: `manual` or `automatic`; `bytes`: on the host's disk; `parent_id`: the snapshot that the VM had last been put to, or made from"

// Types lists every type of event there is.
func Types() []About {
	return []About{
		{VMCreated, "A VM was made; it is starting.", "`image_id`, `template_id`, `vcpu_count`, `mem_mib`, `disk_mib`, `vmm`"},
		{VMStateChanged, "A VM's state, or the reason for it, is another.", "`from`, `to`: states; `reason`: in words"},
		{VMConditionChanged, "A fact about a guest is another.", "`condition`: `network_ready`, `agent_ready` or `cloud_init_done`; `from`, `to`: `true`, `false` or `unknown`; `reason`: one word; `message`: in words"},
		{VMOperation, "Something that was asked of a VM has ended, well or not.", "`operation`: `create`, `start`, `stop`, `restart`, `pause`, `resume`, `sleep`, `wake`, `snapshot`, `restore`, `fork`, `delete` or `reboot` (the guest's own); `outcome`: `succeeded` or `failed`; `duration_ms`; `error`, `code`: why it failed"},
		{VMRebooted, "A guest has rebooted while its VMM ran on: its agent says that another boot is under way.", "–"},
		{VMDeleted, "A VM is gone, with its disk and everything reserved for it.", "–"},
		{SnapshotCreated, "A snapshot of a VM was taken, and is safe on the host's disk.", snapshotData},
		{SnapshotDeleted, "A snapshot is gone, with its files.", snapshotData},
		{WebhookFailed, "A delivery was given up after its last try. Not sent to webhooks.", "`webhook_id`, `delivery_id`, `event_id`, `attempts`, `status_code`, `error`"},
		{WebhookDisabled, "A webhook was disabled because its receiver answered 410 Gone. Not sent to webhooks.", "`webhook_id`"},
		{WebhookTest, "Somebody tests a webhook. It is in no log, and sent to that webhook only.", "`webhook_id`"},
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

// Pattern chooses types: one of them, "vm.*" for all that begin so, or "*".
type Pattern string

// Matches reports whether the pattern chooses t.
func (p Pattern) Matches(t Type) bool {
	if prefix, ok := p.Prefix(); ok {
		return strings.HasPrefix(string(t), prefix)
	}
	return string(p) == string(t)
}

// Prefix returns what the types of a pattern with a star begin with.
func (p Pattern) Prefix() (prefix string, starred bool) {
	return strings.CutSuffix(string(p), "*")
}

// maxPatterns bounds how many may be given at once.
const maxPatterns = 32

// ParsePatterns checks patterns that a client gave in a field. One that can
// choose nothing is refused: it is a mistake in writing.
func ParsePatterns(field string, given []string) ([]Pattern, error) {
	if len(given) > maxPatterns {
		return nil, errs.InvalidField(field, "up to %d types can be given", maxPatterns)
	}
	patterns := make([]Pattern, len(given))
	for i, text := range given {
		p := Pattern(text)
		if prefix, starred := p.Prefix(); starred && prefix != "" && !strings.HasSuffix(prefix, ".") || !p.choosesAny() {
			return nil, errs.InvalidField(field, "%q is no type of event; a type such as %s, vm.* or * can be given", short(text), VMStateChanged)
		}
		patterns[i] = p
	}
	return patterns, nil
}

func (p Pattern) choosesAny() bool {
	return slices.ContainsFunc(Types(), func(a About) bool { return p.Matches(a.Type) })
}

// short bounds what an error repeats.
func short(text string) string {
	const most = 64 // bytes
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

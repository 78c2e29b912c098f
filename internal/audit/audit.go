// Package audit records who did what to which object, from where, and with which outcome.
//
// It is not the event log: events say how VMs came to be as they are, for their owners and
// for programs; a record says who asked, also for what was refused. A record has no
// contents: no bodies, queries, headers or secrets. Start at [Record] and [Service.Add];
// window.go bounds records that clients without a key cause.
package audit

import (
	"context"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// Outcome is how something that was asked for has ended.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused" // the request was at fault, or had no right
	Failed  Outcome = "failed"  // hatchd or the host was at fault
)

// Operations that no route of the API has.
const (
	SSHSession   = "ssh-session"   // a connection to a VM's SSH port
	PortSession  = "port-session"  // a connection to a published port
	Authenticate = "authenticate"  // a key that was refused
	Gap          = "audit-records" // records were lost: Count says how many
)

// Record is one entry of the audit log.
type Record struct {
	Seq int64     // increases with time; the store orders by it
	At  time.Time // when it had ended

	OwnerID          string // user that may read the record, "" for admins only
	UserID, UserName string // who; "" if that is not known
	KeyID, KeyName   string // "" without a key
	Address          string // of the client, "" for this host's own processes

	Operation    string // id of the API's operation, or one of those above
	Noun, Object string // "vm" and its id; "" for none
	Made         string // id of what a request about Object has made, such as a snapshot of it; "" for none
	Outcome      Outcome
	Code         string // of the error; "" for none
	RequestID    string

	Took  time.Duration
	Bytes int64 // that a session carried, both ways
	Count int64 // how many the record stands for; ≥ 1
}

// By returns a record of what a caller does from an address, the zero one if it is not on the
// network. Its operation, object and outcome are missing.
func By(caller access.Principal, from netip.Addr) Record {
	r := Record{OwnerID: caller.OwnerID, UserID: caller.OwnerID, UserName: caller.UserName, KeyID: caller.KeyID, KeyName: caller.KeyName}
	if from.IsValid() {
		r.Address = from.String()
	}
	return r
}

// Filter selects records. Zero fields do not narrow.
type Filter struct {
	Scope        access.Scope // of those whose records are seen
	User, Key    string       // id or name
	Operation    string
	Object       string // id of it, or of what was made
	Outcome      Outcome
	Since, Until time.Time
	Before       int64 // Seq; for the next page
	Limit        int   // ≥ 1
}

// Store keeps records.
type Store interface {
	// AppendAudit adds records. One whose Seq exists is that record, and is left alone.
	AppendAudit(ctx context.Context, records []Record) error
	// LastAudit returns the highest Seq, 0 for none.
	LastAudit(ctx context.Context) (int64, error)
	// AuditRecords returns the newest records that match.
	AuditRecords(ctx context.Context, f Filter) ([]Record, error)
	// PruneOldAudit and PruneAuditOver remove up to batch records that are older than a
	// time, or beyond the newest, and return how many.
	PruneOldAudit(ctx context.Context, before time.Time, batch int) (int, error)
	PruneAuditOver(ctx context.Context, most, batch int) (int, error)
	// OwnerOfVM returns the owner of a VM, "" if there is none.
	OwnerOfVM(ctx context.Context, id string) (string, error)
}

// maxText bounds each text of a record, in bytes.
const maxText = 128

// cut returns the record with bounded texts.
func (r Record) cut() Record {
	for _, text := range []*string{&r.UserName, &r.KeyName, &r.Address, &r.Operation, &r.Noun, &r.Object, &r.Made, &r.Code, &r.RequestID} {
		if len(*text) > maxText {
			*text = (*text)[:maxText]
		}
	}
	return r
}

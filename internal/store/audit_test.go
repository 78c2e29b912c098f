package store

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/audit"
)

func seqs(t *testing.T, s *Store, f audit.Filter) (got []int64) {
	t.Helper()
	if f.Scope == (access.Scope{}) {
		f.Scope = access.Everyone
	}
	f.Limit = max(f.Limit, 2)
	found, err := s.AuditRecords(context.Background(), f)
	noError(t, err)
	for _, r := range found {
		got = append(got, r.Seq)
	}
	return got
}

func TestAuditRecords(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, at := t.Context(), now()
		full := audit.Record{
			Seq: 3, At: at, OwnerID: "acc_a", UserID: "acc_a", UserName: "ann", KeyID: "key_a", KeyName: "ci", Address: "192.0.2.7",
			Operation: "stop-vm", Noun: "vm", Object: "vm_a", Made: "rt_a", Outcome: audit.Refused, Code: "c", RequestID: "r", Took: time.Second, Bytes: 7, Count: 2,
		}
		gone := audit.Record{Seq: 2, At: at.Add(-time.Hour), OwnerID: "usr_gone", UserID: "usr_gone", UserName: "gone", Operation: "create-vm", Outcome: audit.OK, Count: 1}
		unknown := audit.Record{Seq: 1, At: at.Add(-2 * time.Hour), Operation: audit.Authenticate, Outcome: audit.Refused, Code: "a\x00b", Count: 9}
		noError(t, s.AppendAudit(ctx, []audit.Record{unknown, gone, full}))
		noError(t, s.AppendAudit(ctx, []audit.Record{full})) // again, as when it is not known whether the first was stored
		last, err := s.LastAudit(ctx)
		noError(t, err)
		equal(t, last, int64(3))
		found, err := s.AuditRecords(ctx, audit.Filter{Scope: access.Owner("acc_a"), Limit: 9})
		noError(t, err)
		equal(t, found, []audit.Record{full})
		for name, c := range map[string]struct {
			f    audit.Filter
			want []int64
		}{
			"newest first":    {audit.Filter{}, []int64{3, 2}},
			"next page":       {audit.Filter{Before: 2}, []int64{1}},
			"of a user":       {audit.Filter{User: "usr_gone"}, []int64{2}},
			"of a name":       {audit.Filter{User: "ann"}, []int64{3}},
			"with a key":      {audit.Filter{Key: "ci"}, []int64{3}},
			"operation":       {audit.Filter{Operation: "create-vm"}, []int64{2}},
			"object":          {audit.Filter{Object: "vm_a"}, []int64{3}},
			"made":            {audit.Filter{Object: "rt_a"}, []int64{3}},
			"outcome":         {audit.Filter{Outcome: audit.Refused}, []int64{3, 1}},
			"since":           {audit.Filter{Since: at.Add(-time.Minute)}, []int64{3}},
			"until":           {audit.Filter{Until: at.Add(-time.Minute)}, []int64{2, 1}},
			"none":            {audit.Filter{Scope: access.Owner("acc_b")}, nil},
			"not storable":    {audit.Filter{User: "\x00"}, nil},
			"of another user": {audit.Filter{Scope: access.Owner("acc_x"), Outcome: audit.Refused}, nil},
		} {
			if got := seqs(t, s, c.f); !slices.Equal(got, c.want) {
				t.Errorf("%s: got %v, want %v", name, got, c.want)
			}
		}
		removed, err := s.PruneAuditOver(ctx, 2, 100)
		noError(t, err)
		equal(t, removed, 1)
		removed, err = s.PruneOldAudit(ctx, fromMicros(3), 100) // by seq, which is a time
		noError(t, err)
		equal(t, removed, 1)
		equal(t, seqs(t, s, audit.Filter{}), []int64{3})
	})
}

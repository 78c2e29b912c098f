package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/audit"
)

var _ audit.Store = (*auditStore)(nil)

// auditRow is a record of the audit log as stored in its table.
type auditRow struct {
	Seq        int64  `db:"seq"`
	HappenedAt int64  `db:"happened_at"`
	OwnerID    string `db:"owner_id"`
	UserID     string `db:"user_id"`
	UserName   string `db:"user_name"`
	KeyID      string `db:"key_id"`
	KeyName    string `db:"key_name"`
	Address    string `db:"address"`
	Operation  string `db:"operation"`
	Noun       string `db:"noun"`
	ObjectID   string `db:"object_id"`
	MadeID     string `db:"made_id"`
	Outcome    string `db:"outcome"`
	Code       string `db:"code"`
	RequestID  string `db:"request_id"`
	TookMicros int64  `db:"took_us"`
	Bytes      int64  `db:"bytes"`
	Number     int64  `db:"number"`
}

var auditColumns = []string{
	"seq", "happened_at", "owner_id", "user_id", "user_name", "key_id", "key_name", "address",
	"operation", "noun", "object_id", "made_id", "outcome", "code", "request_id", "took_us", "bytes", "number",
}

var (
	selectAudit = "SELECT " + strings.Join(auditColumns, ", ") + " FROM audit"
	insertAudit = "INSERT INTO audit (" + strings.Join(auditColumns, ", ") + ") VALUES (:" + strings.Join(auditColumns, ", :") + ") ON CONFLICT (seq) DO NOTHING"
)

func auditRowOf(r audit.Record) auditRow {
	return auditRow{
		Seq: r.Seq, HappenedAt: micros(r.At), OwnerID: r.OwnerID, UserID: r.UserID, UserName: printable(r.UserName),
		KeyID: r.KeyID, KeyName: printable(r.KeyName), Address: r.Address, Operation: r.Operation, Noun: r.Noun, ObjectID: printable(r.Object), MadeID: printable(r.Made),
		Outcome: string(r.Outcome), Code: printable(r.Code), RequestID: printable(r.RequestID),
		TookMicros: r.Took.Microseconds(), Bytes: r.Bytes, Number: r.Count,
	}
}

func (r auditRow) record() audit.Record {
	return audit.Record{
		Seq: r.Seq, At: fromMicros(r.HappenedAt), OwnerID: r.OwnerID, UserID: r.UserID, UserName: r.UserName,
		KeyID: r.KeyID, KeyName: r.KeyName, Address: r.Address, Operation: r.Operation, Noun: r.Noun, Object: r.ObjectID, Made: r.MadeID,
		Outcome: audit.Outcome(r.Outcome), Code: r.Code, RequestID: r.RequestID,
		Took: time.Duration(r.TookMicros) * time.Microsecond, Bytes: r.Bytes, Count: r.Number,
	}
}

// AppendAudit implements [audit.Store].
func (s *auditStore) AppendAudit(ctx context.Context, records []audit.Record) error {
	rows := make([]auditRow, len(records))
	for i, r := range records {
		rows[i] = auditRowOf(r)
	}
	return s.write(ctx, func(tx *tx) error {
		if _, err := tx.NamedExecContext(ctx, insertAudit, rows); err != nil {
			return fmt.Errorf("cannot store audit records: %w", err)
		}
		return nil
	})
}

// LastAudit implements [audit.Store].
func (s *auditStore) LastAudit(ctx context.Context) (last int64, err error) {
	if _, err := get(ctx, s.reads, &last, "SELECT COALESCE(MAX(seq), 0) FROM audit"); err != nil {
		return 0, fmt.Errorf("cannot read the audit log: %w", err)
	}
	return last, nil
}

// AuditRecords implements [audit.Store].
func (s *auditStore) AuditRecords(ctx context.Context, f audit.Filter) ([]audit.Record, error) {
	if !storable(f.User, f.Key, f.Operation, f.Object, string(f.Outcome)) {
		return nil, nil
	}
	query, args := auditQuery(f)
	var rows []auditRow
	if err := selectAll(ctx, s.reads, &rows, query, args...); err != nil {
		return nil, fmt.Errorf("cannot read the audit log: %w", err)
	}
	records := make([]audit.Record, len(rows))
	for i, r := range rows {
		records[i] = r.record()
	}
	return records, nil
}

func auditQuery(f audit.Filter) (query string, args []any) {
	owned, args := inScope(f.Scope)
	where := []string{owned}
	and := func(given bool, condition string, values ...any) {
		if given {
			where, args = append(where, condition), append(args, values...)
		}
	}
	and(f.User != "", "(user_id = ? OR user_name = ?)", f.User, f.User)
	and(f.Key != "", "(key_id = ? OR key_name = ?)", f.Key, f.Key)
	and(f.Operation != "", "operation = ?", f.Operation)
	and(f.Object != "", "(object_id = ? OR made_id = ?)", f.Object, f.Object)
	and(f.Outcome != "", "outcome = ?", string(f.Outcome))
	and(!f.Since.IsZero(), "happened_at >= ?", micros(f.Since))
	and(!f.Until.IsZero(), "happened_at < ?", micros(f.Until))
	and(f.Before != 0, "seq < ?", f.Before)
	return selectAudit + " WHERE " + strings.Join(where, " AND ") + " ORDER BY seq DESC LIMIT ?", append(args, f.Limit)
}

// PruneOldAudit implements [audit.Store].
func (s *auditStore) PruneOldAudit(ctx context.Context, before time.Time, batch int) (int, error) {
	return s.pruneAudit(ctx, "SELECT seq FROM audit WHERE seq < ? ORDER BY seq LIMIT ?", micros(before), batch)
}

// PruneAuditOver implements [audit.Store].
func (s *auditStore) PruneAuditOver(ctx context.Context, most, batch int) (int, error) {
	return s.pruneAudit(ctx, "SELECT seq FROM audit WHERE seq <= (SELECT seq FROM audit ORDER BY seq DESC LIMIT 1 OFFSET ?) ORDER BY seq LIMIT ?", most, batch)
}

func (s *auditStore) pruneAudit(ctx context.Context, selected string, args ...any) (removed int, err error) {
	err = s.write(ctx, func(tx *tx) error {
		n, err := tx.exec(ctx, "DELETE FROM audit WHERE seq IN ("+selected+")", args...)
		removed = int(n)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cannot prune the audit log: %w", err)
	}
	return removed, nil
}

// OwnerOfVM implements [audit.Store].
func (s *auditStore) OwnerOfVM(ctx context.Context, id string) (owner string, err error) {
	_, err = get(ctx, s.reads, &owner, "SELECT owner_id FROM vms WHERE id = ?", id)
	return owner, err
}

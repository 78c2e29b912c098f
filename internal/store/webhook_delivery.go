package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/webhook"
)

// deliveryRow is a delivery as stored in its table.
type deliveryRow struct {
	ID         string        `db:"id"`
	WebhookID  string        `db:"webhook_id"`
	EventID    string        `db:"event_id"`
	EventSeq   int64         `db:"event_seq"`
	EventType  string        `db:"event_type"`
	Body       string        `db:"body"`
	State      string        `db:"state"`
	Attempts   int           `db:"attempts"`
	StatusCode int           `db:"status_code"`
	Error      string        `db:"error"`
	NextTryAt  sql.NullInt64 `db:"next_try_at"`
	TriedAt    sql.NullInt64 `db:"tried_at"`
	CreatedAt  int64         `db:"created_at"`
}

// deliveryColumns are all columns but body.
const deliveryColumns = "id, webhook_id, event_id, event_seq, event_type, state, attempts, status_code, error, next_try_at, tried_at, created_at"

const insertDelivery = "INSERT INTO webhook_deliveries (" + deliveryColumns + `, body) VALUES
	(:id, :webhook_id, :event_id, :event_seq, :event_type, :state, :attempts, :status_code, :error, :next_try_at, :tried_at, :created_at, :body)`

func deliveryRowOf(d webhook.Delivery) deliveryRow {
	return deliveryRow{
		ID: d.ID, WebhookID: d.WebhookID, EventID: d.EventID, EventSeq: d.EventSeq, EventType: string(d.EventType), Body: string(d.Body),
		State: string(d.State), Attempts: d.Attempts, StatusCode: d.StatusCode, Error: printable(d.Error),
		NextTryAt: optionalMicros(d.NextTryAt), TriedAt: optionalMicros(d.TriedAt), CreatedAt: micros(d.CreatedAt),
	}
}

func (r deliveryRow) delivery() webhook.Delivery {
	d := webhook.Delivery{
		ID: r.ID, WebhookID: r.WebhookID, EventID: r.EventID, EventSeq: r.EventSeq, EventType: event.Type(r.EventType),
		State: webhook.State(r.State), Attempts: r.Attempts, StatusCode: r.StatusCode, Error: r.Error,
		NextTryAt: optionalTime(r.NextTryAt), TriedAt: optionalTime(r.TriedAt), CreatedAt: fromMicros(r.CreatedAt),
	}
	if r.Body != "" {
		d.Body = []byte(r.Body)
	}
	return d
}

func deliveriesOf(rows []deliveryRow) []webhook.Delivery {
	list := make([]webhook.Delivery, len(rows))
	for i, r := range rows {
		list[i] = r.delivery()
	}
	return list
}

// Deliveries implements [webhook.Store].
func (s *webhookStore) Deliveries(ctx context.Context, webhookID string, f webhook.Filter) (page []webhook.Delivery, next string, err error) {
	after, err := parseCursor(f.After)
	if err != nil {
		return nil, "", err
	}
	where, args := []string{"webhook_id = ?"}, []any{webhookID}
	if f.ID != "" {
		where, args = append(where, "id = ?"), append(args, f.ID)
	}
	if f.State != "" {
		where, args = append(where, "state = ?"), append(args, string(f.State))
	}
	if after.id != "" {
		where, args = append(where, "(created_at, id) < (?, ?)"), append(args, after.createdAt, after.id)
	}
	query := "SELECT " + deliveryColumns + " FROM webhook_deliveries WHERE " + strings.Join(where, " AND ") +
		" ORDER BY created_at DESC, id DESC LIMIT " + strconv.Itoa(f.Limit+1)
	var rows []deliveryRow
	if err := selectAll(ctx, s.reads, &rows, query, args...); err != nil {
		return nil, "", fmt.Errorf("cannot list deliveries: %w", err)
	}
	if len(rows) > f.Limit {
		rows = rows[:f.Limit]
		last := rows[f.Limit-1]
		next = cursor{last.CreatedAt, last.ID}.String()
	}
	return deliveriesOf(rows), next, nil
}

// InsertDelivery implements [webhook.Store].
func (s *webhookStore) InsertDelivery(ctx context.Context, d webhook.Delivery, most int) error {
	err := s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, idempotency.Of(ctx).Owner, d.ID); err != nil { // its webhook's owner
			return err
		}
		var pending int
		if _, err := tx.get(ctx, &pending, "SELECT COUNT(*) FROM webhook_deliveries WHERE webhook_id = ? AND state = ?", d.WebhookID, string(webhook.Pending)); err != nil {
			return err
		}
		if pending >= most {
			return errs.New(errs.TooMany, "too_many_pending", "cannot add a delivery to webhook %s: it already has %d pending deliveries", d.WebhookID, pending).
				WithHint("see why they are pending: GET /webhooks/%s/deliveries?state=pending", d.WebhookID)
		}
		_, err := tx.NamedExecContext(ctx, insertDelivery, deliveryRowOf(d))
		return err
	})
	if referenceFailed(err) {
		return errNoWebhook
	}
	if err != nil {
		return fmt.Errorf("cannot store a delivery: %w", err)
	}
	return nil
}

// RetryDelivery implements [webhook.Store].
func (s *webhookStore) RetryDelivery(ctx context.Context, webhookID, id string, at time.Time) (d webhook.Delivery, err error) {
	if !storable(id) {
		return d, errNoDelivery
	}
	err = s.write(ctx, func(tx *tx) error {
		n, err := tx.exec(ctx, "UPDATE webhook_deliveries SET state = ?, attempts = 0, next_try_at = ? WHERE webhook_id = ? AND id = ?",
			string(webhook.Pending), micros(at), webhookID, id)
		if err != nil {
			return fmt.Errorf("cannot retry a delivery: %w", err)
		}
		if n == 0 {
			return errNoDelivery
		}
		var row deliveryRow
		_, err = tx.get(ctx, &row, "SELECT "+deliveryColumns+" FROM webhook_deliveries WHERE id = ?", id)
		d = row.delivery()
		return err
	})
	return d, err
}

// Subscriptions implements [webhook.Queue]. A webhook whose secret cannot be opened is left
// out, and keeps its place in the log of events; GET of it tells why.
func (s *webhookStore) Subscriptions(ctx context.Context) ([]webhook.Subscription, error) {
	var rows []struct {
		webhookRow
		Pending int `db:"pending"`
	}
	err := selectAll(ctx, s.reads, &rows, "SELECT "+webhookColumns+
		", (SELECT COUNT(*) FROM webhook_deliveries d WHERE d.webhook_id = webhooks.id AND d.state = ?) AS pending FROM webhooks WHERE enabled ORDER BY id",
		string(webhook.Pending))
	if err != nil {
		return nil, fmt.Errorf("cannot list subscriptions: %w", err)
	}
	list := make([]webhook.Subscription, 0, len(rows))
	for _, r := range rows {
		w, err := r.open(s.keys)
		if errors.Is(err, secret.ErrNotOpened) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, webhook.Subscription{Webhook: w, Pending: r.Pending})
	}
	return list, nil
}

// Enqueue implements [webhook.Queue].
func (s *webhookStore) Enqueue(ctx context.Context, moves []webhook.Move) error {
	return s.write(ctx, func(tx *tx) error {
		for _, m := range moves {
			if err := tx.enqueue(ctx, m); err != nil {
				return fmt.Errorf("cannot store deliveries: %w", err)
			}
		}
		return nil
	})
}

func (t *tx) enqueue(ctx context.Context, m webhook.Move) error {
	n, err := t.exec(ctx, "UPDATE webhooks SET cursor_seq = ? WHERE id = ? AND cursor_seq = ? AND enabled", m.Through, m.WebhookID, m.From)
	if err != nil || n == 0 || len(m.Deliveries) == 0 {
		return err
	}
	rows := make([]deliveryRow, len(m.Deliveries))
	for i, d := range m.Deliveries {
		rows[i] = deliveryRowOf(d)
	}
	_, err = t.NamedExecContext(ctx, insertDelivery, rows)
	return err
}

// Due implements [webhook.Queue].
func (s *webhookStore) Due(ctx context.Context, webhookID string, limit int) ([]webhook.Delivery, error) {
	var rows []deliveryRow
	err := selectAll(ctx, s.reads, &rows, "SELECT "+deliveryColumns+`, body FROM webhook_deliveries
		WHERE webhook_id = ? AND state = ? ORDER BY next_try_at, event_seq LIMIT ?`, webhookID, string(webhook.Pending), limit)
	if err != nil {
		return nil, fmt.Errorf("cannot list due deliveries: %w", err)
	}
	return deliveriesOf(rows), nil
}

// errOvertaken rolls back the outcome of an attempt.
var errOvertaken = errors.New("the attempt was overtaken")

// RecordOutcome implements [webhook.Queue].
func (s *webhookStore) RecordOutcome(ctx context.Context, o webhook.Outcome) (stored bool, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.updateDelivery(ctx, o.Was, o.Now); err != nil {
			return err
		}
		if o.Disable != "" {
			n, err := tx.exec(ctx, "UPDATE webhooks SET enabled = ?, disabled_reason = ?, updated_at = ? WHERE id = ? AND url = ?",
				false, o.Disable, micros(time.Now()), o.Now.WebhookID, o.URL)
			if err != nil {
				return fmt.Errorf("cannot disable a webhook: %w", err)
			}
			if n == 0 {
				return errOvertaken
			}
		}
		return tx.appendEvents(ctx, o.Events)
	})
	if errors.Is(err, errOvertaken) {
		return false, nil
	}
	return err == nil, err
}

// updateDelivery stores a delivery if it has not changed since the attempt began: a
// retry changes its time.
func (t *tx) updateDelivery(ctx context.Context, was, now webhook.Delivery) error {
	n, err := t.exec(ctx, `UPDATE webhook_deliveries SET state = ?, attempts = ?, status_code = ?, error = ?, next_try_at = ?, tried_at = ?
		WHERE id = ? AND state = ? AND next_try_at = ?`,
		string(now.State), now.Attempts, now.StatusCode, printable(now.Error), optionalMicros(now.NextTryAt), optionalMicros(now.TriedAt),
		was.ID, string(was.State), optionalMicros(was.NextTryAt))
	if err != nil {
		return fmt.Errorf("cannot store the outcome of a delivery: %w", err)
	}
	if n == 0 {
		return errOvertaken
	}
	return nil
}

// PruneDeliveries implements [webhook.Queue].
func (s *webhookStore) PruneDeliveries(ctx context.Context, before time.Time, most, batch int) (removed int, err error) {
	var hooks []string
	if err := selectAll(ctx, s.reads, &hooks, "SELECT id FROM webhooks ORDER BY id"); err != nil {
		return 0, fmt.Errorf("cannot list webhooks: %w", err)
	}
	for _, id := range hooks {
		n, err := s.pruneDeliveries(ctx, id, before, most, batch-removed)
		removed += n
		if err != nil || removed == batch {
			return removed, err
		}
	}
	return removed, nil
}

func (s *webhookStore) pruneDeliveries(ctx context.Context, webhookID string, before time.Time, most, batch int) (removed int, err error) {
	pending := string(webhook.Pending)
	var ids []string
	err = selectAll(ctx, s.reads, &ids, `SELECT id FROM webhook_deliveries WHERE webhook_id = ? AND state <> ? AND (created_at < ? OR created_at < (
		SELECT created_at FROM webhook_deliveries WHERE webhook_id = ? AND state <> ? ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?)) LIMIT ?`,
		webhookID, pending, micros(before), webhookID, pending, most-1, batch)
	if err != nil {
		return 0, fmt.Errorf("cannot look for old deliveries: %w", err)
	}
	if len(ids) == 0 {
		return 0, nil
	}
	query, args, err := sqlx.In("DELETE FROM webhook_deliveries WHERE state <> ? AND id IN (?)", pending, ids)
	if err != nil {
		return 0, fmt.Errorf("cannot remove old deliveries: %w", err)
	}
	err = s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, query, args...)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cannot remove old deliveries: %w", err)
	}
	return len(ids), nil
}

var errNoDelivery = errs.New(errs.NotFound, "delivery_not_found", "there is no such delivery").WithHint("GET /webhooks/ID/deliveries lists those that are kept")

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/webhook"
)

var _ webhook.Store = (*Store)(nil)

// webhookRow is a webhook as stored in its table.
type webhookRow struct {
	ID             string `db:"id"`
	OwnerID        string `db:"owner_id"`
	URL            string `db:"url"`
	Events         string `db:"events"`
	Secret         string `db:"secret"` // encrypted, in base64
	Description    string `db:"description"`
	Enabled        bool   `db:"enabled"`
	DisabledReason string `db:"disabled_reason"`
	Cursor         int64  `db:"cursor_seq"`
	CreatedAt      int64  `db:"created_at"`
	UpdatedAt      int64  `db:"updated_at"`
}

// webhook returns the webhook of a row, without its secret.
func (r webhookRow) webhook() (webhook.Webhook, error) {
	w := webhook.Webhook{
		ID: r.ID, OwnerID: r.OwnerID, URL: r.URL, Description: r.Description,
		Enabled: r.Enabled, DisabledReason: r.DisabledReason, Cursor: r.Cursor,
		CreatedAt: fromMicros(r.CreatedAt), UpdatedAt: fromMicros(r.UpdatedAt),
	}
	if err := fromJSON(r.Events, &w.Events); err != nil {
		return webhook.Webhook{}, fmt.Errorf("cannot read webhook %s: %w", r.ID, err)
	}
	return w, nil
}

// open returns the webhook of a row with its secret.
func (r webhookRow) open(keys *secret.Keyring) (webhook.Webhook, error) {
	w, err := r.webhook()
	if err != nil {
		return w, err
	}
	if w.Secret, err = openText(keys, placeOfWebhook(r.ID), r.Secret); err != nil {
		return webhook.Webhook{}, fmt.Errorf("cannot read webhook %s: %w", r.ID, err)
	}
	return w, nil
}

const (
	webhookColumns = "id, owner_id, url, events, secret, description, enabled, disabled_reason, cursor_seq, created_at, updated_at"
	selectWebhook  = "SELECT " + webhookColumns + " FROM webhooks"
)

// InsertWebhook implements [webhook.Store].
func (s *webhookStore) InsertWebhook(ctx context.Context, w webhook.Webhook, most int) error {
	events, err := toJSON(w.Events)
	if err != nil {
		return err
	}
	return s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, w.OwnerID, w.ID); err != nil {
			return err
		}
		// Writing the user serializes creates of one owner, so that concurrent
		// creates cannot exceed the limit.
		if _, err := tx.exec(ctx, "UPDATE users SET name = name WHERE id = ?", w.OwnerID); err != nil {
			return fmt.Errorf("cannot lock the user: %w", err)
		}
		var have int
		if _, err := tx.get(ctx, &have, "SELECT COUNT(*) FROM webhooks WHERE owner_id = ?", w.OwnerID); err != nil {
			return fmt.Errorf("cannot count webhooks: %w", err)
		}
		if have >= most {
			return errs.New(errs.Conflict, "too_many_webhooks", "cannot create another webhook: there are %d already", have).
				WithHint("delete one first")
		}
		if err := tx.checkQuota(ctx, w.OwnerID, quota.Amounts{quota.Webhooks: 1}); err != nil {
			return err
		}
		_, err := tx.exec(ctx, "INSERT INTO webhooks ("+webhookColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, (SELECT last_seq FROM event_log WHERE id = 1), ?, ?)`,
			w.ID, w.OwnerID, w.URL, events, sealText(s.keys, placeOfWebhook(w.ID), w.Secret), w.Description, w.Enabled, w.DisabledReason, micros(w.CreatedAt), micros(w.UpdatedAt))
		if err != nil {
			return fmt.Errorf("cannot store the webhook: %w", err)
		}
		return nil
	})
}

// Webhook implements [webhook.Store].
func (s *webhookStore) Webhook(ctx context.Context, scope access.Scope, id string) (webhook.Webhook, error) {
	if !storable(id) {
		return webhook.Webhook{}, errNoWebhook
	}
	return oneWebhook(ctx, s.reads, s.keys, scope, id)
}

func oneWebhook(ctx context.Context, q querier, keys *secret.Keyring, scope access.Scope, id string) (webhook.Webhook, error) {
	var row webhookRow
	owned, args := inScope(scope)
	found, err := get(ctx, q, &row, selectWebhook+" WHERE id = ? AND "+owned, append([]any{id}, args...)...)
	if err != nil {
		return webhook.Webhook{}, fmt.Errorf("cannot read a webhook: %w", err)
	}
	if !found {
		return webhook.Webhook{}, errNoWebhook
	}
	return row.open(keys)
}

// Webhooks implements [webhook.Store].
func (s *webhookStore) Webhooks(ctx context.Context, scope access.Scope) ([]webhook.Webhook, error) {
	var rows []webhookRow
	owned, args := inScope(scope)
	if err := selectAll(ctx, s.reads, &rows, selectWebhook+" WHERE "+owned+" ORDER BY created_at DESC, id DESC", args...); err != nil {
		return nil, fmt.Errorf("cannot list webhooks: %w", err)
	}
	hooks := make([]webhook.Webhook, len(rows))
	for i, r := range rows {
		var err error
		if hooks[i], err = r.webhook(); err != nil {
			return nil, err
		}
	}
	return hooks, nil
}

// UpdateWebhook implements [webhook.Store].
func (s *webhookStore) UpdateWebhook(ctx context.Context, scope access.Scope, id string, change func(*webhook.Webhook) error) (stored webhook.Webhook, err error) {
	err = s.write(ctx, func(tx *tx) error {
		w, err := lockWebhook(ctx, tx, scope, id)
		if err != nil {
			return err
		}
		was := w.Enabled
		if err := change(&w); err != nil {
			return err
		}
		events, err := toJSON(w.Events)
		if err != nil {
			return err
		}
		cursor := "cursor_seq"
		if w.Enabled && !was {
			cursor = "(SELECT last_seq FROM event_log WHERE id = 1)"
		}
		_, err = tx.exec(ctx, "UPDATE webhooks SET url = ?, events = ?, secret = ?, description = ?, enabled = ?, disabled_reason = ?, updated_at = ?, cursor_seq = "+cursor+" WHERE id = ?",
			w.URL, events, sealText(s.keys, placeOfWebhook(id), w.Secret), w.Description, w.Enabled, w.DisabledReason, micros(time.Now()), id)
		if err != nil {
			return fmt.Errorf("cannot store the webhook: %w", err)
		}
		stored, err = oneWebhook(ctx, tx, tx.keys, scope, id)
		return err
	})
	return stored, err
}

// lockWebhook locks a row against changes by other transactions and reads it.
func lockWebhook(ctx context.Context, tx *tx, scope access.Scope, id string) (webhook.Webhook, error) {
	if _, err := tx.exec(ctx, "UPDATE webhooks SET url = url WHERE id = ?", id); err != nil {
		return webhook.Webhook{}, fmt.Errorf("cannot lock the webhook: %w", err)
	}
	return oneWebhook(ctx, tx, tx.keys, scope, id)
}

// DeleteWebhook implements [webhook.Store].
func (s *webhookStore) DeleteWebhook(ctx context.Context, scope access.Scope, id string, check func(webhook.Webhook) error) error {
	if !storable(id) {
		return errNoWebhook
	}
	return s.write(ctx, func(tx *tx) error {
		w, err := lockWebhook(ctx, tx, scope, id)
		if err != nil {
			return err
		}
		if err := check(w); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, "DELETE FROM webhooks WHERE id = ?", id); err != nil {
			return fmt.Errorf("cannot delete the webhook: %w", err)
		}
		return nil
	})
}

var errNoWebhook = errs.New(errs.NotFound, "webhook_not_found", "there is no such webhook").WithHint("GET /webhooks lists them")

package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/template"
)

var _ template.Store = (*templateStore)(nil)

// templateRow is a template as stored in its table.
type templateRow struct {
	ID          string `db:"id"`
	OwnerID     string `db:"owner_id"`
	Name        string `db:"name"`
	Description string `db:"description"` // only in rows written before defaults included it
	CreatedAt   int64  `db:"created_at"`
	UpdatedAt   int64  `db:"updated_at"`
	Visibility  string `db:"visibility"`
	Defaults    []byte `db:"defaults"`
}

// templateDefaults is the JSON of Defaults. User data has a key of its own, encrypted, as
// the hashes of the routes' passwords are.
type templateDefaults struct {
	machine.Overrides
	SealedUserData *[]byte      `json:"sealed_user_data,omitempty"`
	Routes         []route.Spec `json:"routes,omitempty"`
}

const selectTemplate = "SELECT id, owner_id, name, description, created_at, updated_at, visibility, defaults FROM templates"

// InsertTemplate implements [template.Store].
func (s *templateStore) InsertTemplate(ctx context.Context, t template.Template) error {
	defaults, err := defaultsOf(s.keys, t)
	if err != nil {
		return err
	}
	return s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, t.OwnerID, t.ID); err != nil {
			return err
		}
		_, err := tx.exec(ctx, `INSERT INTO templates (id, owner_id, name, description, created_at, updated_at, visibility, defaults)
			VALUES (?, ?, ?, '', ?, ?, ?, ?)`, t.ID, t.OwnerID, t.Name, micros(t.CreatedAt), micros(t.UpdatedAt), string(cmp.Or(t.Sharing.Visibility, access.Private)), defaults)
		return storedTemplate(t, err)
	})
}

// defaultsOf returns the JSON of a template's row.
func defaultsOf(keys *secret.Keyring, t template.Template) ([]byte, error) {
	stored := templateDefaults{Overrides: t.Overrides, Routes: slices.Clone(t.Routes)}
	if t.UserData != nil {
		stored.UserData, stored.SealedUserData = nil, new(keys.Seal(placeOfTemplate(t.ID), []byte(*t.UserData)))
	}
	for i := range stored.Routes {
		hash := &stored.Routes[i].Auth.Hash
		*hash = keys.Seal(placeOfTemplateRoutes(t.ID), *hash)
	}
	defaults, err := json.Marshal(stored)
	if err != nil {
		return nil, fmt.Errorf("cannot store the template: %w", err)
	}
	return defaults, nil
}

// storedTemplate returns the error of storing a template, if there is one.
func storedTemplate(t template.Template, err error) error {
	if violated(err) == "templates_owner_id_name" {
		return errs.New(errs.Conflict, "template_exists", "name: another template is called %q", t.Name).
			WithField("name").WithHint("give another name, or delete that template").WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("cannot store the template: %w", err)
	}
	return nil
}

// Template implements [template.Store]. An id takes precedence over a name.
func (s *templateStore) Template(ctx context.Context, scope access.Scope, idOrName string) (template.Template, error) {
	if !storable(idOrName) {
		return template.Template{}, noTemplate(idOrName)
	}
	where, args := sharedTemplates.named(scope, idOrName)
	return oneTemplate(ctx, s.reads, s.keys, idOrName, where, args...)
}

func oneTemplate(ctx context.Context, q querier, keys *secret.Keyring, id, where string, args ...any) (template.Template, error) {
	var row templateRow
	found, err := get(ctx, q, &row, selectTemplate+" WHERE "+where, args...)
	if err != nil {
		return template.Template{}, fmt.Errorf("cannot read the template: %w", err)
	}
	if !found {
		return template.Template{}, noTemplate(id)
	}
	with, err := sharedTemplates.with(ctx, q, row.ID)
	if err != nil {
		return template.Template{}, err
	}
	return row.open(keys, with[row.ID])
}

// Templates implements [template.Store].
func (s *templateStore) Templates(ctx context.Context, scope access.Scope) ([]template.Template, error) {
	var rows []templateRow
	visible, args := sharedTemplates.visible(scope)
	if err := selectAll(ctx, s.reads, &rows, selectTemplate+" WHERE "+visible+" ORDER BY created_at DESC, id DESC", args...); err != nil {
		return nil, fmt.Errorf("cannot list templates: %w", err)
	}
	with, err := sharedTemplates.with(ctx, s.reads, "")
	if err != nil {
		return nil, err
	}
	templates := make([]template.Template, len(rows))
	for i, row := range rows {
		var err error
		if templates[i], err = row.template(with[row.ID]); err != nil {
			return nil, err
		}
	}
	return templates, nil
}

// UpdateTemplate implements [template.Store].
func (s *templateStore) UpdateTemplate(ctx context.Context, scope access.Scope, id string, change func(*template.Template) error) (t template.Template, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if t, err = lockTemplate(ctx, tx, scope, id); err != nil {
			return err
		}
		if err := change(&t); err != nil {
			return err
		}
		t.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond)
		defaults, err := defaultsOf(s.keys, t)
		if err != nil {
			return err
		}
		_, err = tx.exec(ctx, "UPDATE templates SET name = ?, description = '', defaults = ?, updated_at = ?, visibility = ? WHERE id = ?",
			t.Name, defaults, micros(t.UpdatedAt), string(t.Sharing.Visibility), id)
		if err := storedTemplate(t, err); err != nil {
			return err
		}
		return sharedTemplates.share(ctx, tx, id, t.Sharing.With)
	})
	return t, err
}

// lockTemplate locks a row against changes by other transactions and reads it.
func lockTemplate(ctx context.Context, tx *tx, scope access.Scope, id string) (template.Template, error) {
	owned, args := inScope(scope)
	args = append([]any{id}, args...)
	n, err := tx.exec(ctx, "UPDATE templates SET name = name WHERE id = ? AND "+owned, args...)
	if err != nil {
		return template.Template{}, fmt.Errorf("cannot lock the template: %w", err)
	}
	if n == 0 {
		return template.Template{}, noTemplate(id)
	}
	return oneTemplate(ctx, tx, tx.keys, id, "id = ?", id)
}

// DeleteTemplate implements [template.Store].
func (s *templateStore) DeleteTemplate(ctx context.Context, scope access.Scope, id string, check func(template.Template) error) error {
	return s.write(ctx, func(tx *tx) error {
		t, err := lockTemplate(ctx, tx, scope, id)
		if err != nil {
			return err
		}
		if err := check(t); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, "DELETE FROM templates WHERE id = ?", id); err != nil {
			return fmt.Errorf("cannot delete the template: %w", err)
		}
		return nil
	})
}

// template returns the template of a row without its secrets.
func (r templateRow) template(with []string) (template.Template, error) {
	t, _, err := r.decode(with)
	for i := range t.Routes {
		t.Routes[i].Auth.Hash = nil
	}
	return t, err
}

// open returns the template of a row with its secrets.
func (r templateRow) open(keys *secret.Keyring, with []string) (template.Template, error) {
	t, sealed, err := r.decode(with)
	if err != nil {
		return t, err
	}
	if sealed != nil {
		data, err := keys.Open(placeOfTemplate(r.ID), *sealed)
		if err != nil {
			return template.Template{}, fmt.Errorf("cannot read template %s: %w", r.ID, err)
		}
		t.UserData = new(string(data))
	}
	for i := range t.Routes {
		if err := openHash(keys, placeOfTemplateRoutes(r.ID), &t.Routes[i]); err != nil {
			return template.Template{}, fmt.Errorf("cannot read template %s: %w", r.ID, err)
		}
	}
	return t, nil
}

// decode returns a template whose secrets are still encrypted, and its user data.
func (r templateRow) decode(with []string) (t template.Template, userData *[]byte, err error) {
	t = template.Template{
		ID: r.ID, OwnerID: r.OwnerID, Name: r.Name,
		Sharing:   access.Sharing{Visibility: access.Visibility(r.Visibility), With: with},
		CreatedAt: fromMicros(r.CreatedAt), UpdatedAt: fromMicros(r.UpdatedAt),
	}
	var stored templateDefaults
	if err := json.Unmarshal(r.Defaults, &stored); err != nil {
		return template.Template{}, nil, fmt.Errorf("cannot read template %s: %w", r.ID, err)
	}
	t.Overrides, t.Routes = stored.Overrides, stored.Routes
	if t.Description == nil && r.Description != "" {
		t.Description = &r.Description
	}
	return t, stored.SealedUserData, nil
}

func noTemplate(idOrName string) error {
	return errs.New(errs.NotFound, "template_not_found", "there is no template %q", idOrName).
		WithHint("GET /templates lists them")
}

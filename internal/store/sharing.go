package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
)

// sharedTable is a table of objects that users share, whose users are in another.
type sharedTable struct {
	shares, id string // the other table, and its column with the object's id
}

var (
	sharedImages    = sharedTable{"image_shares", "image_id"}
	sharedTemplates = sharedTable{"template_shares", "template_id"}
)

// visible returns a condition, with its arguments, that selects the rows that a scope sees:
// its own, those shared with it, and public ones. An admin sees those of hatchd, too.
func (t sharedTable) visible(scope access.Scope) (condition string, args []any) {
	owner, all := scope.Owner()
	if all || owner == "" {
		return inScope(scope)
	}
	hatchds := "FALSE"
	if scope.Manages(access.SystemID) {
		hatchds = "owner_id = '" + access.SystemID + "'"
	}
	return "(owner_id = ? OR " + hatchds + " OR visibility = '" + string(access.Public) + "' OR visibility = '" + string(access.Shared) +
		"' AND id IN (SELECT " + t.id + " FROM " + t.shares + " WHERE user_id = ?))", []any{owner, owner}
}

// named returns the rest of a query, after WHERE, for the object with an id or a name that
// a scope sees: an id comes before a name, an own object before a public one. What another
// user shares is called by its id, or by the owner's name and its own, as alice/small: a
// bare name must not begin to mean what another user has made.
func (t sharedTable) named(scope access.Scope, idOrName string) (rest string, args []any) {
	visible, args := t.visible(scope)
	owner, all := scope.Owner()
	called := "name = ? AND (owner_id = ? OR visibility = '" + string(access.Public) + "')"
	args = append(args, idOrName, idOrName, owner)
	switch user, name, qualified := strings.Cut(idOrName, "/"); {
	case all:
		called, args = "name = ?", args[:len(args)-1]
	case qualified:
		called += " OR name = ? AND owner_id = (SELECT users.id FROM users WHERE users.name = ?)"
		args = append(args, name, user)
	}
	return visible + " AND (id = ? OR " + called + ") ORDER BY CASE WHEN id = ? THEN 0 WHEN owner_id = ? THEN 1 ELSE 2 END, created_at LIMIT 1",
		append(args, idOrName, owner)
}

// with returns the users that objects are shared with, by the object's id, "" for all
// objects.
func (t sharedTable) with(ctx context.Context, q querier, id string) (map[string][]string, error) {
	var rows []struct {
		Object string `db:"object"`
		User   string `db:"user_id"`
	}
	query, args := "SELECT "+t.id+" AS object, user_id FROM "+t.shares, []any(nil)
	if id != "" {
		query, args = query+" WHERE "+t.id+" = ?", []any{id}
	}
	if err := selectAll(ctx, q, &rows, query+" ORDER BY user_id", args...); err != nil {
		return nil, fmt.Errorf("cannot read whom objects are shared with: %w", err)
	}
	users := map[string][]string{}
	for _, row := range rows {
		users[row.Object] = append(users[row.Object], row.User)
	}
	return users, nil
}

// share replaces the users that an object is shared with.
func (t sharedTable) share(ctx context.Context, tx *tx, id string, users []string) error {
	if _, err := tx.exec(ctx, "DELETE FROM "+t.shares+" WHERE "+t.id+" = ?", id); err != nil {
		return fmt.Errorf("cannot change whom the object is shared with: %w", err)
	}
	for _, user := range users {
		_, err := tx.exec(ctx, "INSERT INTO "+t.shares+" ("+t.id+", user_id) VALUES (?, ?) ON CONFLICT DO NOTHING", id, user)
		if referenceFailed(err) {
			return errNoUser
		}
		if err != nil {
			return fmt.Errorf("cannot store whom the object is shared with: %w", err)
		}
	}
	return nil
}

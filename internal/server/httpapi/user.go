package httpapi

import (
	"cmp"
	"context"
	"slices"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

const (
	updateUserText = "Change a user, by a JSON merge patch: absent fields stay. To change a role, or an admin, needs the scope admin. A user that is disabled is refused at once, and its open streams end; its VMs run on. The last admin who is enabled and has a key stays one."
	deleteUserText = "Delete a user. One that owns more than keys is deleted with cascade only: then its VMs with their files, snapshots, images, templates, webhooks, routes and keys are deleted first. " +
		"An interrupted deletion is continued by the next start of hatchd, or by a repeated request."
)

// Users manages users. [access.Service] implements it.
type Users interface {
	CreateUser(ctx context.Context, name string, role access.Role) (access.User, error)
	// AdmitUser creates the user of an issuer's subject, also of one that was deleted.
	AdmitUser(ctx context.Context, name, subject string) (access.User, error)
	User(ctx context.Context, idOrName string) (access.User, error)
	Users(ctx context.Context) ([]access.User, error)
	// UpdateUser changes nothing if its function returns an error.
	UpdateUser(ctx context.Context, idOrName string, change func(*access.User) error) (access.User, error)
	DeleteUser(ctx context.Context, idOrName string, cascade bool) error
}

type userHandlers struct {
	*door
	users Users
}

type createUserInput struct {
	Body api.CreateUser
}

func (h *userHandlers) create(ctx context.Context, in *createUserInput) (*created[api.User], error) {
	u, err := h.make(ctx, in.Body)
	if err != nil {
		return nil, err
	}
	return &created[api.User]{Location: "/users/" + u.ID, Body: shownUser(u)}, nil
}

func (h *userHandlers) make(ctx context.Context, body api.CreateUser) (access.User, error) {
	role := access.Role(cmp.Or(body.Role, api.RoleMember))
	if role == access.RoleAdmin || body.OIDCSubject != "" { // whose tokens may make it an admin
		if err := checkRight(ctx, access.Admin); err != nil {
			return access.User{}, err
		}
	}
	switch {
	case body.OIDCSubject == "":
		return h.users.CreateUser(ctx, body.Name, role)
	case role != access.RoleMember:
		return access.User{}, errs.InvalidField("role", "cannot be given with oidc_subject: the user's tokens say it")
	}
	return h.users.AdmitUser(ctx, body.Name, body.OIDCSubject)
}

func (h *userHandlers) list(ctx context.Context, in *PageInput) (*paged[api.User], error) {
	users, err := h.users.Users(ctx)
	if err != nil {
		return nil, err
	}
	return list[access.User, api.User]{
		all: users, show: shownUser, path: "/users",
		at: func(u access.User) position { return position{u.CreatedAt, u.ID} },
	}.page(*in)
}

func (h *userHandlers) get(ctx context.Context, in *ConditionalIDPath) (*tagged[api.User], error) {
	u, err := h.users.User(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return withTag(in.Conditions, shownUser(u), u.UpdatedAt)
}

func (h *userHandlers) update(ctx context.Context, in *patchInput) (*tagged[api.User], error) {
	u, err := h.users.UpdateUser(ctx, in.ID, func(u *access.User) error {
		shown := shownUser(*u)
		if err := in.allowObject(shown, u.UpdatedAt); err != nil {
			return err
		}
		after, err := patched[api.UpdateUser](h.door, shown, in.RawBody, []string{"name", "role", "disabled"}, nil)
		if err != nil {
			return err
		}
		if u.Role == access.RoleAdmin || after.Role != string(u.Role) {
			if err := checkRight(ctx, access.Admin); err != nil {
				return err
			}
		}
		u.Name, u.Role, u.Disabled = after.Name, access.Role(after.Role), after.Disabled
		return nil
	})
	if err != nil {
		return nil, err
	}
	return withTag(Conditions{}, shownUser(u), u.UpdatedAt)
}

type deleteUserInput struct {
	IDPath
	Cascade bool `query:"cascade" doc:"Delete all that the user owns, too."`
}

func (h *userHandlers) delete(ctx context.Context, in *deleteUserInput) (*answer[api.Deleted], error) {
	u, err := h.users.User(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if u.Role == access.RoleAdmin {
		if err := checkRight(ctx, access.Admin); err != nil {
			return nil, err
		}
	}
	if err := h.users.DeleteUser(ctx, in.ID, in.Cascade); err != nil {
		return nil, err
	}
	return deleted(), nil
}

// me serves GET /me.
func (h *userHandlers) me(ctx context.Context, _ *struct{}) (*answer[api.Me], error) {
	c := callerOf(ctx)
	me := api.Me{
		User: api.MeUser{ID: c.OwnerID, Name: c.UserName}, Role: string(c.Role), Scopes: shownScopes(c.Rights),
	}
	if c.KeyID != "" {
		me.Key = &api.MeKey{ID: c.KeyID, Name: c.KeyName}
	}
	if !c.ExpiresAt.IsZero() {
		me.ExpiresAt = utcOrNil(&c.ExpiresAt)
	}
	return &answer[api.Me]{Body: me}, nil
}

func shownUser(u access.User) api.User {
	return api.User{
		ID: u.ID, Name: u.Name, Role: string(u.Role), Disabled: u.Disabled, Deleting: u.Deleting,
		OIDCIssuer: u.Issuer, OIDCSubject: u.Subject, CreatedAt: utc(u.CreatedAt), UpdatedAt: utc(u.UpdatedAt),
	}
}

// sharing decodes who is to see an object, in place of the sharing before. Users are named
// by id or name.
func (h *userHandlers) sharing(ctx context.Context, before access.Sharing, visibility string, with []string) (access.Sharing, error) {
	s := access.Sharing{Visibility: access.Visibility(cmp.Or(visibility, string(before.Visibility), string(access.Private)))}
	if len(with) > access.MaxSharedWith {
		return s, errs.InvalidField("shared_with", "has %d users; the limit is %d", len(with), access.MaxSharedWith)
	}
	if s.Visibility != access.Shared && slices.Equal(with, before.With) {
		with = nil // they were left out
	}
	for _, idOrName := range with {
		u, err := h.users.User(ctx, idOrName)
		if errs.Is(err, errs.NotFound) {
			return s, errs.InvalidField("shared_with", "there is no user %q", errs.Brief(idOrName)).WithCause(err)
		}
		if err != nil {
			return s, err
		}
		s.With = append(s.With, u.ID)
	}
	return s, nil
}

// shownWith returns whom an object is shared with, to those who may change that.
func shownWith(ctx context.Context, ownerID string, s access.Sharing) []string {
	if !manager(ctx).Manages(ownerID) {
		return nil
	}
	return s.With
}

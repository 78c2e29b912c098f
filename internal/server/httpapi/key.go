package httpapi

import (
	"context"
	"slices"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

const (
	createKeyText = "Create an API key. Only this answer contains its secret. A key can do no more, no longer and from no other networks than the key that it is made with. With user_id an admin makes a key for another user."
	listKeysText  = "Returns the caller's keys, without their secrets; for an admin with user_id those of another user."
	deleteKeyText = "Revoke a key at once; open streams that were authenticated with it end. An admin may revoke the keys of all users. The caller's last key stays."
)

// Keys manages API keys. [access.Service] implements it.
type Keys interface {
	// CreateKey returns the new key and its secret, which no other call returns.
	CreateKey(ctx context.Context, caller access.Principal, r access.NewKey) (key access.Key, secret string, err error)
	Keys(ctx context.Context, scope access.Scope) ([]access.Key, error)
	DeleteKey(ctx context.Context, caller access.Principal, id string) error
}

type keyHandlers struct {
	*door
	keys  Keys
	users Users
}

type createKeyInput struct {
	Body api.CreateKey
}

func (h *keyHandlers) create(ctx context.Context, in *createKeyInput) (*created[api.Key], error) {
	b := in.Body
	r := access.NewKey{UserID: b.UserID, Name: b.Name, Note: b.Note, E2B: b.E2B}
	for _, scope := range b.Scopes {
		right, ok := access.ParseRight(scope)
		if !ok {
			return nil, errs.InvalidField("scopes", "%q is not a scope: want NOUN:read or NOUN:write, such as %s, or %s", errs.Brief(scope), access.Read(access.VMs), access.Admin)
		}
		r.Rights = append(r.Rights, right)
	}
	for _, text := range b.AllowedCIDRs {
		from, err := network.ParsePrefix(text)
		if err != nil {
			return nil, errs.InvalidField("allowed_cidrs", "%q is not a network or an address; want one such as 192.0.2.0/24 or 2001:db8::7", errs.Brief(text))
		}
		r.Allowed = append(r.Allowed, from)
	}
	if b.ExpiresAt != nil {
		at := b.ExpiresAt.Time
		r.ExpiresAt = &at
	}
	key, secret, err := h.keys.CreateKey(ctx, callerOf(ctx).Principal, r)
	if err != nil {
		return nil, err
	}
	out := &created[api.Key]{Location: "/keys/" + key.ID, Body: listedKey(key)}
	out.Body.Secret = secret
	return out, nil
}

type listKeysInput struct {
	PageInput
	UserID string `query:"user_id" maxLength:"64" doc:"ID or name of another user; for admins only."`
}

func (h *keyHandlers) list(ctx context.Context, in *listKeysInput) (*paged[api.Key], error) {
	of := scope(ctx)
	if in.UserID != "" {
		if err := checkRight(ctx, access.Admin); err != nil {
			return nil, err
		}
		u, err := h.users.User(ctx, in.UserID)
		if err != nil {
			return nil, err
		}
		of = access.Owner(u.ID)
	}
	keys, err := h.keys.Keys(ctx, of)
	if err != nil {
		return nil, err
	}
	return list[access.Key, api.Key]{
		all: keys, path: "/keys",
		show: func(k access.Key) api.Key {
			shown := listedKey(k)
			shown.Current = k.ID == callerOf(ctx).KeyID
			return shown
		},
		at: func(k access.Key) position { return position{k.CreatedAt, k.ID} },
	}.page(in.PageInput)
}

// get serves no route: it finds the key that an earlier request has created.
func (h *keyHandlers) get(ctx context.Context, in *IDPath) (*answer[api.Key], error) {
	of := scope(ctx)
	if checkRight(ctx, access.Admin) == nil {
		of = access.Everyone
	}
	keys, err := h.keys.Keys(ctx, of)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(keys, func(k access.Key) bool { return k.ID == in.ID })
	if at < 0 {
		return nil, errs.New(errs.NotFound, "key_not_found", "there is no such API key")
	}
	return &answer[api.Key]{Body: listedKey(keys[at])}, nil
}

func (h *keyHandlers) delete(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := h.keys.DeleteKey(ctx, callerOf(ctx).Principal, in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

func listedKey(k access.Key) api.Key {
	out := api.Key{
		ID: k.ID, Name: k.Name, Note: k.Note, UserID: k.OwnerID, Prefix: k.Prefix, CreatedBy: k.MadeBy, Scopes: shownScopes(k.Rights),
		CreatedAt: utc(k.CreatedAt), ExpiresAt: utcOrNil(k.ExpiresAt), LastUsedAt: utcOrNil(k.LastUsedAt),
	}
	for _, n := range k.Allowed {
		out.AllowedCIDRs = append(out.AllowedCIDRs, n.String())
	}
	return out
}

func shownScopes(rights access.Rights) []string {
	scopes := []string{}
	for _, r := range rights.List() {
		scopes = append(scopes, r.String())
	}
	return scopes
}

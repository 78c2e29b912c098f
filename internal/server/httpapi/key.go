package httpapi

import (
	"context"
	"slices"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// Keys manages API keys. [access.Service] implements it.
type Keys interface {
	// CreateKey returns the new key and its secret, which no other call returns.
	CreateKey(ctx context.Context, owner, name string) (key access.Key, secret string, err error)
	Keys(ctx context.Context, scope access.Scope) ([]access.Key, error)
	DeleteKey(ctx context.Context, scope access.Scope, id string) error
}

type keyHandlers struct {
	*door
	keys Keys
}

type createKeyInput struct {
	Body api.CreateKey
}

func (h *keyHandlers) create(ctx context.Context, in *createKeyInput) (*created[api.Key], error) {
	key, secret, err := h.keys.CreateKey(ctx, owner(ctx), in.Body.Name)
	if err != nil {
		return nil, err
	}
	out := &created[api.Key]{Location: "/keys/" + key.ID, Body: listedKey(key)}
	out.Body.Secret = secret
	return out, nil
}

func (h *keyHandlers) list(ctx context.Context, in *PageInput) (*paged[api.Key], error) {
	keys, err := h.keys.Keys(ctx, scope(ctx))
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
	}.page(*in)
}

// get serves no route: it finds the key that an earlier request has created.
func (h *keyHandlers) get(ctx context.Context, in *IDPath) (*answer[api.Key], error) {
	keys, err := h.keys.Keys(ctx, scope(ctx))
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
	if err := h.keys.DeleteKey(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

func listedKey(k access.Key) api.Key {
	return api.Key{ID: k.ID, Name: k.Name, CreatedAt: utc(k.CreatedAt), LastUsedAt: utcOrNil(k.LastUsedAt)}
}

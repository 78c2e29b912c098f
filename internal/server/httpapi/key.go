package httpapi

import (
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
)

// Keys is what can be done with API keys. [access.Service] is one.
type Keys interface {
	// CreateKey returns the new key and its secret, which nobody sees again.
	CreateKey(ctx context.Context, owner, name string) (key access.Key, secret string, err error)
	Keys(ctx context.Context, owner string) ([]access.Key, error)
	DeleteKey(ctx context.Context, owner, id string) error
}

type createKeyInput struct {
	Body api.CreateKey
}

func (d *door) createKey(ctx context.Context, in *createKeyInput) (*created[api.Key], error) {
	key, secret, err := d.Keys.CreateKey(ctx, owner(ctx), in.Body.Name)
	if err != nil {
		return nil, err
	}
	out := &created[api.Key]{Location: "/keys/" + key.ID, Body: listedKey(key)}
	out.Body.Secret = secret
	return out, nil
}

type listKeysOutput struct {
	Body []api.Key `nullable:"false"`
}

func (d *door) listKeys(ctx context.Context, _ *struct{}) (*listKeysOutput, error) {
	keys, err := d.Keys.Keys(ctx, owner(ctx))
	if err != nil {
		return nil, err
	}
	out := &listKeysOutput{Body: make([]api.Key, len(keys))}
	for i, key := range keys {
		out.Body[i] = listedKey(key)
	}
	return out, nil
}

func (d *door) deleteKey(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := d.Keys.DeleteKey(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

func listedKey(k access.Key) api.Key {
	return api.Key{ID: k.ID, Name: k.Name, CreatedAt: utc(k.CreatedAt), LastUsedAt: utcOrNil(k.LastUsedAt)}
}

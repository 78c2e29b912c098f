package daemon

import (
	"context"
	"errors"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/webhook"
)

// belongings deletes what users own, by the services of each noun.
type belongings struct {
	*parts
	templates *template.Service
	webhooks  *webhook.Service
}

// DeleteOf implements [access.Belongings]. Routes go with their VMs.
func (b belongings) DeleteOf(ctx context.Context, userID string) error {
	of := access.Owner(userID)
	for _, remove := range []func(context.Context, access.Scope) error{b.deleteVMs, b.deleteSnapshots, b.deleteImages, b.deleteTemplates, b.deleteWebhooks} {
		if err := remove(ctx, of); err != nil {
			return err
		}
	}
	return nil
}

func (b belongings) deleteVMs(ctx context.Context, of access.Scope) error {
	all, _, err := b.vms.List(ctx, of, vm.Filter{})
	return deleteEach(all, err, func(v vm.VM) error { return b.vms.Delete(ctx, of, v.ID) })
}

func (b belongings) deleteSnapshots(ctx context.Context, of access.Scope) error {
	all, err := b.snapshots.List(ctx, of, snapshot.Filter{})
	return deleteEach(all, err, func(s snapshot.Snapshot) error { return b.snapshots.Delete(ctx, of, s.ID) })
}

func (b belongings) deleteTemplates(ctx context.Context, of access.Scope) error {
	all, err := b.templates.List(ctx, of)
	return deleteEach(all, err, func(t template.Template) error {
		if !of.Sees(t.OwnerID) { // shared with the user
			return nil
		}
		return b.templates.Delete(ctx, of, t.ID, func(template.Template) error { return nil })
	})
}

func (b belongings) deleteImages(ctx context.Context, of access.Scope) error {
	all, err := b.images.List(ctx, of)
	return deleteEach(all, err, func(i image.Image) error {
		if !of.Sees(i.OwnerID) {
			return nil
		}
		return b.images.Delete(ctx, of, i.ID, b.warm.Forget)
	})
}

func (b belongings) deleteWebhooks(ctx context.Context, of access.Scope) error {
	all, err := b.webhooks.List(ctx, of)
	return deleteEach(all, err, func(w webhook.Webhook) error {
		return b.webhooks.Delete(ctx, of, w.ID, func(webhook.Webhook) error { return nil })
	})
}

// deleteEach deletes all objects of a list that was read with err. One that is gone
// already is no error; others do not keep the rest.
func deleteEach[T any](all []T, err error, remove func(T) error) error {
	failures := []error{err}
	for _, one := range all {
		if err := remove(one); !errs.Is(err, errs.NotFound) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

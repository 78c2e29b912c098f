package httpapi

import (
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/quota"
)

const quotaText = "Replace a user's own limits. A limit that is absent becomes the server's; 0 allows none, and -1 any amount. What the user owns already stays."

// Quotas counts what users own, and keeps their limits. [store.Store] implements it.
type Quotas interface {
	Usage(ctx context.Context, userID string) (quota.Usage, error)
	// UserUsage is Usage of the user with this id or name. Errors: errs.NotFound.
	UserUsage(ctx context.Context, idOrName string) (quota.Usage, error)
	// SetQuota changes the user's own limits, unless change returns an error.
	// Errors: errs.NotFound; errs.Invalid.
	SetQuota(ctx context.Context, idOrName string, change func(quota.Usage) (quota.Own, error)) (quota.Usage, error)
}

type quotaHandlers struct {
	*door
	quotas Quotas
}

func (h *quotaHandlers) routes() []route {
	return []route{
		{get, "/me/usage", access.Read(access.Quotas), 200, "get-usage", "Get own usage", "What the caller's user owns, and may own.", on(h.ownUsage)},
		{get, "/users/{id}/usage", access.Admin, 200, "get-user-usage", "Get a user's usage", "What a user owns, and may own.", on(h.usage)},
		{get, "/users/{id}/quota", access.Admin, 200, "get-quota", "Get a user's quota", "The limits that an admin has set for a user.", on(h.get)},
		{put, "/users/{id}/quota", access.Admin, 200, "set-quota", "Set a user's quota", quotaText, on(h.set)},
	}
}

func (h *quotaHandlers) ownUsage(ctx context.Context, _ *struct{}) (*answer[api.Usage], error) {
	u, err := h.quotas.Usage(ctx, owner(ctx))
	if err != nil {
		return nil, err
	}
	return &answer[api.Usage]{Body: shownUsage(u)}, nil
}

// UserPath is the input of routes about one user. It is exported for huma, which ignores
// unexported embedded structs.
type UserPath struct {
	ID string `path:"id" doc:"The user's ID or name."`
}

func (h *quotaHandlers) usage(ctx context.Context, in *UserPath) (*answer[api.Usage], error) {
	u, err := h.quotas.UserUsage(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Usage]{Body: shownUsage(u)}, nil
}

func (h *quotaHandlers) get(ctx context.Context, in *UserPath) (*answer[api.Quota], error) {
	u, err := h.quotas.UserUsage(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Quota]{Body: shownQuota(u)}, nil
}

type setQuotaInput struct {
	UserPath
	Body api.QuotaLimits
}

func (h *quotaHandlers) set(ctx context.Context, in *setQuotaInput) (*answer[api.Quota], error) {
	own := quota.Own{}
	for r, most := range limitsIn(&in.Body) {
		if *most != nil {
			own[r] = **most
		}
	}
	u, err := h.quotas.SetQuota(ctx, in.ID, func(quota.Usage) (quota.Own, error) { return own, nil })
	if err != nil {
		return nil, err
	}
	return &answer[api.Quota]{Body: shownQuota(u)}, nil
}

// limitsIn returns the fields of limits by resource.
func limitsIn(l *api.QuotaLimits) map[quota.Resource]**int64 {
	return map[quota.Resource]**int64{
		quota.VMs: &l.VMs, quota.VCPUs: &l.VCPUs, quota.Memory: &l.MemoryMiB, quota.Disk: &l.DiskMiB,
		quota.Snapshots: &l.Snapshots, quota.SnapshotMiB: &l.SnapshotMiB, quota.ImageMiB: &l.ImageMiB,
		quota.Routes: &l.Routes, quota.Webhooks: &l.Webhooks,
	}
}

func shownQuota(u quota.Usage) api.Quota {
	shown := api.Quota{UserID: u.UserID}
	for r, field := range limitsIn(&shown.Limits) {
		if most, set := u.Own[r]; set {
			*field = &most
		}
	}
	return shown
}

func shownUsage(u quota.Usage) api.Usage {
	shown := api.Usage{UserID: u.UserID}
	for r, amount := range map[quota.Resource]*api.Amount{
		quota.VMs: &shown.VMs, quota.VCPUs: &shown.VCPUs, quota.Memory: &shown.MemoryMiB, quota.Disk: &shown.DiskMiB,
		quota.Snapshots: &shown.Snapshots, quota.SnapshotMiB: &shown.SnapshotMiB, quota.ImageMiB: &shown.ImageMiB,
		quota.Routes: &shown.Routes, quota.Webhooks: &shown.Webhooks,
	} {
		amount.Used = u.Used[r]
		if most, limited := u.Limits[r]; limited {
			amount.Limit = &most
		}
	}
	return shown
}

package httpapi_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/quota"
)

// fakeQuotas knows the user of the good key, who may have two VMs.
type fakeQuotas struct{}

func (fakeQuotas) Usage(_ context.Context, userID string) (quota.Usage, error) {
	return quota.Usage{UserID: userID, Own: quota.Own{quota.VMs: 2, quota.Routes: quota.Unlimited}, Limits: quota.Limits{quota.VMs: 2}, Used: quota.Amounts{quota.VMs: 1, quota.Routes: 7}}, nil
}

func (q fakeQuotas) UserUsage(ctx context.Context, idOrName string) (quota.Usage, error) {
	if idOrName != "acc_good" {
		return quota.Usage{}, errs.New(errs.NotFound, "user_not_found", "there is no user %q", idOrName)
	}
	return q.Usage(ctx, idOrName)
}

func (q fakeQuotas) SetQuota(ctx context.Context, idOrName string, change func(quota.Usage) (quota.Own, error)) (quota.Usage, error) {
	u, err := q.UserUsage(ctx, idOrName)
	if err == nil {
		u.Own, err = change(u)
	}
	return u, err
}

func TestQuotas(t *testing.T) {
	s := newServer(t)
	var u api.Usage
	if err := json.Unmarshal(s.call(t, "GET", "/me/usage", "").body, &u); err != nil {
		t.Fatal(err)
	}
	if u.VMs.Used != 1 || u.VMs.Limit == nil || *u.VMs.Limit != 2 || u.Routes.Used != 7 || u.Routes.Limit != nil {
		t.Errorf("usage %+v", u)
	}
	var q api.Quota
	if err := json.Unmarshal(s.call(t, "PUT", "/users/acc_good/quota", `{"vms":0,"webhooks":-1}`).body, &q); err != nil {
		t.Fatal(err)
	}
	if l := q.Limits; *l.VMs != 0 || *l.Webhooks != -1 || l.Routes != nil {
		t.Errorf("quota %+v", q)
	}
	wantStatus(t, s.call(t, "PUT", "/users/acc_good/quota", `{"vms":-2}`), 400)
	wantStatus(t, s.call(t, "PUT", "/users/acc_good/quota", `{"vm":2}`), 400)
	wantStatus(t, s.call(t, "GET", "/users/acc_other/quota", ""), 404)
}

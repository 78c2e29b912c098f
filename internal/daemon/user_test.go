package daemon_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// as returns a client with a key.
func (w *world) as(t *testing.T, secret string) *client.Client {
	t.Helper()
	c, err := client.New(w.url(t), secret, client.WithHTTPClient(plain))
	ok(t, err)
	return c
}

// refusedAs checks the code of an error that an API call has returned.
func refusedAs(t *testing.T, err error, code string) {
	t.Helper()
	if e, found := errors.AsType[*client.Error](err); !found || e.Problem.Code != code {
		t.Errorf("got %v, want the code %s", err, code)
	}
}

// member makes a user and a key for it.
func (w *world) member(t *testing.T, name string) (api.User, api.Key) {
	t.Helper()
	u, err := w.CreateUser(t.Context(), api.CreateUser{Name: name})
	ok(t, err)
	k, err := w.CreateKey(t.Context(), api.CreateKey{Name: "key", UserID: name})
	ok(t, err)
	return u, k
}

// A user with objects is deleted with cascade only, and then nothing of it is left.
func TestDeleteUser(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.start(t)
	defer func() { _ = w.end() }()
	ctx := t.Context()
	u, k := w.member(t, "alice")
	c := w.as(t, k.Secret)
	v, err := c.CreateVM(ctx, api.CreateVM{Name: "web"}, client.CreateOptions{IdempotencyKey: "once"})
	ok(t, err)
	_, err = c.CreateSnapshot(ctx, v.ID, api.CreateSnapshot{Name: "golden"})
	ok(t, err)
	_, err = c.CreateRoute(ctx, v.ID, api.CreateRoute{TargetPort: 80})
	ok(t, err)
	tpl, err := c.CreateTemplate(ctx, api.CreateTemplate{Name: "small"})
	ok(t, err)
	_, err = c.CreateWebhook(ctx, api.CreateWebhook{URL: "https://example.com/", Events: []string{"*"}})
	ok(t, err)
	_, err = c.UpdateTemplate(ctx, tpl.ID, api.UpdateTemplate{Visibility: new("shared"), SharedWith: []string{"admin"}})
	ok(t, err)

	err = w.DeleteUser(ctx, "alice", false)
	refusedAs(t, err, "user_owns_objects")
	if err == nil || !strings.Contains(err.Error(), "vms: 1, snapshots: 1, templates: 1, webhooks: 1, routes: 1, keys: 1") {
		t.Errorf("it says %v", err)
	}
	_, err = c.Me(ctx)
	ok(t, err)
	ok(t, w.DeleteUser(ctx, "alice", true))
	_, err = c.Me(ctx)
	refusedAs(t, err, "invalid_api_key")
	_, err = w.GetUser(ctx, u.ID)
	refusedAs(t, err, "user_not_found")
	templates, err := w.ListTemplates(ctx)
	if err != nil || len(templates) > 0 {
		t.Errorf("left: %v, %v", templates, err)
	}

	refusedAs(t, w.DeleteUser(ctx, "admin", true), "first_admin")
	_, err = w.UpdateUser(ctx, "admin", api.UpdateUser{Role: new("member")})
	refusedAs(t, err, "last_admin")
	_, err = w.UpdateUser(ctx, "admin", api.UpdateUser{Disabled: new(true)})
	refusedAs(t, err, "last_admin")
	_, err = w.GetUser(ctx, "acc_system")
	refusedAs(t, err, "user_not_found")
}

// A key can do no more, no longer and from no more networks than the one it is made with.
func TestKeysOfKeys(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.start(t)
	defer func() { _ = w.end() }()
	ctx := t.Context()
	_, k := w.member(t, "alice")
	alice := w.as(t, k.Secret)
	until := api.Time{Time: time.Now().Add(time.Hour)}
	narrow, err := alice.CreateKey(ctx, api.CreateKey{Name: "narrow", Note: "of a test", Scopes: []string{"keys:write", "vms:read"}, ExpiresAt: &until, AllowedCIDRs: []string{"127.0.0.0/8", "192.0.2.0/24"}})
	ok(t, err)
	if len(narrow.Prefix) != 12 || !strings.HasPrefix(narrow.Secret, narrow.Prefix) {
		t.Errorf("prefix %q of %d bytes", narrow.Prefix, len(narrow.Secret))
	}
	c := w.as(t, narrow.Secret)
	child, err := c.CreateKey(ctx, api.CreateKey{Name: "child"})
	ok(t, err)
	if strings.Join(child.Scopes, " ") != "vms:read keys:write" || child.CreatedBy != narrow.ID || child.ExpiresAt == nil || !child.ExpiresAt.Equal(narrow.ExpiresAt.Time) || len(child.AllowedCIDRs) != 2 {
		t.Errorf("it has %+v", child)
	}
	later := api.Time{Time: time.Now().Add(2 * time.Hour)}
	for code, body := range map[string]api.CreateKey{
		"forbidden":             {Name: "x", Scopes: []string{"vms:write"}},
		"invalid_scopes":        {Name: "x", Scopes: []string{"admin"}},
		"invalid_expires_at":    {Name: "x", ExpiresAt: &later},
		"invalid_allowed_cidrs": {Name: "x", AllowedCIDRs: []string{"0.0.0.0/0"}},
	} {
		_, err := c.CreateKey(ctx, body)
		refusedAs(t, err, code)
	}
	_, err = c.CreateKey(ctx, api.CreateKey{Name: "x", UserID: "admin"})
	refusedAs(t, err, "forbidden")
	far, err := alice.CreateKey(ctx, api.CreateKey{Name: "far", AllowedCIDRs: []string{"192.0.2.7"}})
	ok(t, err)
	_, err = w.as(t, far.Secret).Me(ctx)
	refusedAs(t, err, "address_not_allowed")
	me, err := c.Me(ctx)
	if err != nil || me.User.Name != "alice" || me.Role != "member" || me.Key == nil || me.Key.ID != narrow.ID || me.ExpiresAt == nil {
		t.Errorf("me is %+v, %v", me, err)
	}
}

// Images and templates are seen by the users they are shared with, and changed by their
// owner.
func TestSharing(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.start(t)
	defer func() { _ = w.end() }()
	ctx := t.Context()
	_, k := w.member(t, "alice")
	_, other := w.member(t, "bob")
	alice, bob := w.as(t, k.Secret), w.as(t, other.Secret)
	tpl, err := alice.CreateTemplate(ctx, api.CreateTemplate{Name: "small"})
	ok(t, err)
	_, err = bob.GetTemplate(ctx, tpl.ID)
	refusedAs(t, err, "template_not_found")
	shared, err := alice.UpdateTemplate(ctx, tpl.ID, api.UpdateTemplate{Visibility: new("shared"), SharedWith: []string{"bob"}})
	ok(t, err)
	if shared.Visibility != "shared" || len(shared.SharedWith) != 1 {
		t.Errorf("shared: %+v", shared)
	}
	_, err = bob.GetTemplate(ctx, "small")
	refusedAs(t, err, "template_not_found") // a bare name is no other member's
	got, err := bob.GetTemplate(ctx, "alice/small")
	if err != nil || got.ID != tpl.ID || got.OwnerID != tpl.OwnerID || got.SharedWith != nil {
		t.Errorf("bob sees %+v, %v", got, err)
	}
	own, err := bob.CreateTemplate(ctx, api.CreateTemplate{Name: "small"})
	ok(t, err)
	if got, err = bob.GetTemplate(ctx, "small"); err != nil || got.ID != own.ID { // the own one comes first
		t.Errorf("small is %s, %v", got.ID, err)
	}
	_, err = bob.CreateVM(ctx, api.CreateVM{TemplateID: tpl.ID}, client.CreateOptions{})
	ok(t, err)
	refusedAs(t, bob.DeleteTemplate(ctx, tpl.ID), "not_owner")
	_, err = bob.UpdateTemplate(ctx, tpl.ID, api.UpdateTemplate{Name: new("mine")})
	refusedAs(t, err, "not_owner")
	_, err = alice.UpdateTemplate(ctx, tpl.ID, api.UpdateTemplate{Visibility: new("public")})
	refusedAs(t, err, "forbidden")
	_, err = alice.UpdateTemplate(ctx, tpl.ID, api.UpdateTemplate{Visibility: new("private")})
	ok(t, err)
	_, err = bob.GetTemplate(ctx, tpl.ID)
	refusedAs(t, err, "template_not_found")

	img, err := bob.GetImage(ctx, "img_default")
	if err != nil || img.Visibility != "public" || img.OwnerID != "acc_system" || img.KernelPath != "" {
		t.Errorf("bob sees %+v, %v", img, err)
	}
	refusedAs(t, bob.DeleteImage(ctx, "img_default"), "not_owner")
	if _, err = w.UpdateImage(ctx, "img_default", api.UpdateImage{Visibility: new("private")}); err != nil {
		t.Error(err)
	}
	_, err = bob.GetImage(ctx, "img_default")
	refusedAs(t, err, "image_not_found")
	if img, err := w.GetImage(ctx, "img_default"); err != nil || img.KernelPath == "" { // an admin sees hatchd's
		t.Errorf("the admin sees %+v, %v", img, err)
	}
}

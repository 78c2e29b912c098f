//go:build system

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// ownSecret is in the requests of a user, and in no process of the host.
const ownSecret = "a-secret-of-alice-0123456789"

// member is a user who is no admin, with an object of each kind.
type member struct {
	*client.Client
	user     api.User
	key      api.Key
	vm       api.VM
	exec     api.Exec // it writes a line again and again
	delivery string
	ids      map[string]string // of its objects, by the collection of the API
}

// users are two members whose objects have the same names, on real guests.
type users struct {
	*world
	alice, bob *member
	admin      string // its key
	operations []apiOperation
}

// testUsers has each user try everything against what another owns.
func testUsers(t *testing.T, w *world) {
	u := newUsers(t, w)
	for _, row := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"names and idempotency keys are each user's own", u.testSameNames},
		{"another's objects do not exist", u.testOthersObjects},
		{"lists are of the caller", u.testLists},
		{"another's objects are not used by id", u.testUseByID},
		{"images and templates are as shared as they say", u.testShared},
		{"doors are for the owner", u.testDoors},
		{"streams end with their key, and with their user", u.testRevoked}, // last: the user is disabled for a while
	} {
		t.Run(row.name, row.run)
	}
}

func newUsers(t *testing.T, w *world) *users {
	t.Helper()
	u := &users{world: w, admin: w.adminKey(t)}
	u.operations = u.readOperations(t)
	u.setVisibility(t, api.UpdateImage{Visibility: new("public")})
	u.alice, u.bob = u.newMember(t, "alice"), u.newMember(t, "bob")
	processes := watchProcesses(ownSecret)
	defer processes.stop()
	program, err := buildService(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	members := []*member{u.alice, u.bob}
	_, err = each(len(members), func(ctx context.Context, i int) (api.VM, error) {
		body := twin()
		if members[i] == u.alice { // the other is reached through its agent alone
			body.MemMiB, body.EnableNetwork = new(2*minimalMem), new(true)
			body.UserData = new("#cloud-config\n# " + ownSecret)
		}
		return members[i].fill(ctx, body)
	})
	if err == nil {
		err = startService(t.Context(), u.alice.Client, u.alice.vm, program)
	}
	if err != nil {
		t.Fatal(err)
	}
	processes.requireNone(t)
	return u
}

// twin is the VM that each member makes, by the same name.
func twin() api.CreateVM {
	body := minimal()
	body.Name, body.EnableNetwork = "twin", new(false)
	return body
}

func (w *world) adminKey(t *testing.T) string {
	t.Helper()
	key, err := os.ReadFile(w.data("admin.key"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(key))
}

// setVisibility changes who sees the minimal image, until the end of the test.
func (u *users) setVisibility(t *testing.T, to api.UpdateImage) {
	t.Helper()
	before, err := u.client.GetImage(t.Context(), minimalID)
	if err == nil {
		_, err = u.client.UpdateImage(t.Context(), minimalID, to)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		back := api.UpdateImage{Visibility: &before.Visibility, SharedWith: before.SharedWith}
		if _, err := u.client.UpdateImage(context.Background(), minimalID, back); err != nil {
			t.Error(err)
		}
	})
}

func (u *users) newMember(t *testing.T, name string) *member {
	t.Helper()
	var m member
	var err error
	if m.user, err = u.client.CreateUser(t.Context(), api.CreateUser{Name: name}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if err := u.client.DeleteUser(ctx, name, true); err != nil {
			t.Error(err)
		}
	})
	m.key = u.newKey(t, name, "key")
	m.Client = u.as(t, m.key)
	return &m
}

func (u *users) newKey(t *testing.T, user, name string) api.Key {
	t.Helper()
	key, err := u.client.CreateKey(t.Context(), api.CreateKey{Name: name, UserID: user})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (u *users) as(t *testing.T, key api.Key) *client.Client {
	t.Helper()
	c, err := client.New(u.daemon.URL(), key.Secret)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fill makes an object of each kind.
func (m *member) fill(ctx context.Context, body api.CreateVM) (vm api.VM, err error) {
	if m.vm, err = m.CreateVM(ctx, body, client.CreateOptions{IdempotencyKey: "once", Wait: "ready", WaitTimeout: readyLimit}); err != nil {
		return m.vm, err
	}
	m.exec, err = m.StartExec(ctx, m.vm.ID, api.RunExec{Command: api.Command{Shell: ticking}, Env: map[string]string{"OWN": ownSecret}})
	snapshot, snapshotErr := m.CreateSnapshot(ctx, m.vm.ID, api.CreateSnapshot{Name: "twin"})
	template, templateErr := m.CreateTemplate(ctx, api.CreateTemplate{Name: "twin", MachineSpec: api.MachineSpec{UserData: new(ownSecret)}})
	hook, hookErr := m.CreateWebhook(ctx, api.CreateWebhook{URL: "https://example.com/", Events: []string{"*"}})
	route, routeErr := m.CreateRoute(ctx, m.vm.ID, api.CreateRoute{Subdomain: m.user.Name, TargetPort: 8080, Auth: &api.RouteAuth{Mode: api.AuthKey}})
	_, basicErr := m.CreateRoute(ctx, m.vm.ID, api.CreateRoute{TargetPort: 8080, Auth: &api.RouteAuth{Mode: api.AuthBasic, Username: "me", Password: ownSecret}})
	if err := errors.Join(err, snapshotErr, templateErr, hookErr, routeErr, basicErr); err != nil {
		return m.vm, err
	}
	delivery, err := m.TestWebhook(ctx, hook.ID)
	m.delivery = delivery.ID
	m.ids = map[string]string{
		"vms": m.vm.ID, "snapshots": snapshot.ID, "templates": template.ID, "webhooks": hook.ID, "routes": route.ID, "keys": m.key.ID,
	}
	return m.vm, err
}

// testSameNames finds each member's own object by a name that both have.
func (u *users) testSameNames(t *testing.T) {
	for _, m := range []*member{u.alice, u.bob} {
		again, err := m.CreateVM(t.Context(), m.request(), client.CreateOptions{IdempotencyKey: "once"})
		if err != nil || again.ID != m.vm.ID {
			t.Errorf("%s repeats its request, and gets %s, %v", m.user.Name, again.ID, err)
		}
		snapshot, err := m.GetSnapshot(t.Context(), "twin")
		if err != nil || snapshot.ID != m.ids["snapshots"] {
			t.Errorf("the snapshot of %s is %s, %v", m.user.Name, snapshot.ID, err)
		}
		template, err := m.GetTemplate(t.Context(), "twin")
		if err != nil || template.ID != m.ids["templates"] {
			t.Errorf("the template of %s is %s, %v", m.user.Name, template.ID, err)
		}
	}
	for collection, id := range u.alice.ids {
		if id == u.bob.ids[collection] {
			t.Errorf("both have %s", id)
		}
	}
	if _, err := u.bob.CreateRoute(t.Context(), u.bob.vm.ID, api.CreateRoute{Subdomain: "alice", TargetPort: 80}); !client.IsConflict(err) {
		t.Errorf("another's host name: %v", err)
	}
}

// request is the body that made the member's VM.
func (m *member) request() api.CreateVM {
	body := twin()
	if m.vm.EnableNetwork {
		body.MemMiB, body.EnableNetwork, body.UserData = new(2*minimalMem), new(true), new("#cloud-config\n# "+ownSecret)
	}
	return body
}

// testUseByID names another's objects in requests about one's own: each answer is that
// for an object that does not exist.
func (u *users) testUseByID(t *testing.T) {
	ctx, bob, theirs := t.Context(), u.bob, u.alice
	for name, use := range map[string]func(id string) error{
		theirs.ids["templates"]: func(id string) error {
			_, err := bob.CreateVM(ctx, api.CreateVM{TemplateID: id}, client.CreateOptions{})
			return err
		},
		theirs.ids["snapshots"]: func(id string) error {
			_, err := bob.CreateVM(ctx, api.CreateVM{SnapshotID: id}, client.CreateOptions{})
			return err
		},
		theirs.exec.ID:  func(id string) error { return bob.DeleteExec(ctx, bob.vm.ID, id) },
		theirs.delivery: func(id string) error { _, err := bob.RetryDelivery(ctx, bob.ids["webhooks"], id); return err },
	} {
		got, missing := problem(use(name)), problem(use(name[:4]+strings.Repeat("0", len(name)-4)))
		if got.Code == "" || got.Code != missing.Code || got.Status != missing.Status {
			t.Errorf("%s of another is answered by %d %s, a missing one by %d %s", name, got.Status, got.Code, missing.Status, missing.Code)
		}
	}
	if _, err := bob.RestoreVM(ctx, bob.vm.ID, theirs.ids["snapshots"]); err == nil {
		t.Error("another's snapshot is restored")
	}
	if _, err := bob.CreateKey(ctx, api.CreateKey{Name: "x", UserID: "alice"}); problem(err).Status != 403 {
		t.Errorf("a key for another: %v", err)
	}
}

// problem returns what the server says of an error, nothing if it says nothing.
func problem(err error) api.Problem {
	e, _ := errors.AsType[*client.Error](err)
	if e == nil {
		return api.Problem{}
	}
	return e.Problem
}

// testShared has the minimal image, and a template of a member, seen by no other, by one,
// and by all.
func (u *users) testShared(t *testing.T) {
	id := u.alice.ids["templates"]
	for _, c := range []struct {
		to     string
		with   []string
		forBob bool
	}{{"private", nil, false}, {"shared", []string{"alice"}, false}, {"shared", []string{"bob"}, true}, {"public", nil, true}} {
		t.Run(fmt.Sprint(c.to, c.with), func(t *testing.T) {
			u.setVisibility(t, api.UpdateImage{Visibility: &c.to, SharedWith: c.with})
			u.requireImage(t, c.forBob)
			_, err := u.alice.UpdateTemplate(t.Context(), id, api.UpdateTemplate{Visibility: &c.to, SharedWith: c.with})
			switch {
			case c.to == "public": // which only admins make theirs
				if problem(err).Status != 403 {
					t.Errorf("a member makes a template public: %v", err)
				}
			case err != nil:
				t.Error(err)
			default:
				u.requireTemplate(t, id, c.forBob)
			}
		})
	}
	if _, err := u.alice.UpdateTemplate(t.Context(), id, api.UpdateTemplate{Visibility: new("private")}); err != nil {
		t.Error(err)
	}
	public, err := u.client.CreateTemplate(t.Context(), api.CreateTemplate{Name: "for-all"})
	if err != nil {
		t.Fatal(err)
	}
	u.requireTemplate(t, public.ID, false)
	if _, err := u.client.UpdateTemplate(t.Context(), public.ID, api.UpdateTemplate{Visibility: new("public")}); err != nil {
		t.Error(err)
	}
	u.requireTemplate(t, public.ID, true)
	if err := u.client.DeleteTemplate(t.Context(), public.ID); err != nil {
		t.Error(err)
	}
}

// requireTemplate checks whether a member sees a template of another, which it does not
// change.
func (u *users) requireTemplate(t *testing.T, id string, seen bool) {
	t.Helper()
	if _, err := u.bob.GetTemplate(t.Context(), id); (err == nil) != seen {
		t.Errorf("the template is seen: %v, want %v", err, seen)
	}
	want := map[bool]string{true: "not_owner", false: "template_not_found"}[seen]
	_, renamed := u.bob.UpdateTemplate(t.Context(), id, api.UpdateTemplate{Name: new("mine")})
	deleted := u.bob.DeleteTemplate(t.Context(), id)
	if !client.HasCode(renamed, want) || !client.HasCode(deleted, want) {
		t.Errorf("it is changed: %v, %v, want %s", renamed, deleted, want)
	}
}

// requireImage walks all operations on the minimal image as a member.
func (u *users) requireImage(t *testing.T, seen bool) {
	t.Helper()
	for _, o := range u.operations {
		if !strings.HasPrefix(o.path, "/images/{id}") {
			continue
		}
		want := 404
		switch {
		case seen && o.method == "GET":
			want = 200
		case seen:
			want = 403
		}
		if got := u.send(t, u.bob.key.Secret, o, o.request(minimalID, nil)); got.status != want {
			t.Errorf("%s %s: got %d, want %d: %s", o.method, o.path, got.status, want, got.body)
		}
	}
	codes := map[string]string{}
	for _, id := range []string{minimalID, "img_missing"} {
		body := api.CreateVM{MachineSpec: api.MachineSpec{ImageID: id, MemMiB: new(1 << 26)}} // too large for the host
		_, err := u.bob.CreateVM(t.Context(), body, client.CreateOptions{})
		codes[id] = problem(err).Code
	}
	if codes[minimalID] == "" || seen == (codes[minimalID] == codes["img_missing"]) {
		t.Errorf("VMs of the image, and of a missing one: %v", codes)
	}
}

// testDoors knocks at another's routes, ports by name, tunnel and console.
func (u *users) testDoors(t *testing.T) {
	own := implicit(u.alice.vm, 8080)
	for _, c := range []struct {
		host, key string
		want      []int
	}{
		{"alice.localhost", u.alice.key.Secret, []int{200}},
		{"alice.localhost", u.bob.key.Secret, []int{401, 403}},
		{"alice.localhost", u.admin, []int{401, 403}},
		{"alice.localhost", "", []int{401}},
		{own, u.alice.key.Secret, []int{200}},
		{own, u.bob.key.Secret, []int{404}},
		{own, u.admin, []int{404}},
		{"8080-twin.localhost", u.alice.key.Secret, []int{404}}, // both have a VM of that name
		{"8080-twin.localhost", u.bob.key.Secret, []int{404}},
	} {
		got, err := visitAs(t.Context(), c.key, c.host, "/health")
		if err != nil || !slices.Contains(c.want, got.status) {
			t.Errorf("%s with a key %.12s: got %d, want %v: %s, %v", c.host, c.key, got.status, c.want, got.body, err)
		}
	}
	_, consoleErr := u.bob.VMConsole(t.Context(), u.alice.vm.ID, true)
	_, tunnelErr := u.bob.OpenTunnel(t.Context(), u.alice.vm.ID, 8080)
	_, execErr := u.bob.OpenExec(t.Context(), u.alice.vm.ID, line("true"))
	_, attachErr := u.bob.AttachExec(t.Context(), u.alice.vm.ID, u.alice.exec.ID, 0)
	for door, err := range map[string]error{"console": consoleErr, "tunnel": tunnelErr, "exec": execErr, "attach": attachErr} {
		if !client.IsNotFound(err) {
			t.Errorf("%s: %v", door, err)
		}
	}
}

// processWatch looks for a text in the arguments and the environment of every process
// of the sandbox, again and again.
type processWatch struct {
	text  string
	ended chan struct{}
	done  chan map[string]bool
}

func watchProcesses(text string) *processWatch {
	p := &processWatch{text, make(chan struct{}), make(chan map[string]bool, 1)}
	go func() {
		found := map[string]bool{}
		_ = sandbox.Poll(2*readyLimit, func() (bool, error) {
			p.look(found)
			select {
			case <-p.ended:
				return true, nil
			default:
				return false, nil
			}
		})
		p.done <- found
	}()
	return p
}

func (p *processWatch) look(found map[string]bool) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		for _, file := range []string{"cmdline", "environ"} {
			content, err := os.ReadFile("/proc/" + e.Name() + "/" + file)
			if err == nil && strings.Contains(string(content), p.text) {
				name, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
				found[strings.TrimSpace(string(name))+"'s "+file] = true
			}
		}
	}
}

// stop ends the watch, and returns what was found.
func (p *processWatch) stop() map[string]bool {
	select {
	case <-p.ended:
		return nil
	default:
	}
	close(p.ended)
	return <-p.done
}

// requireNone ends the watch, which must have found the text in no process but one that
// is started here to have it.
func (p *processWatch) requireNone(t *testing.T) {
	t.Helper()
	control := exec.CommandContext(t.Context(), "sleep", "600")
	control.Env = []string{"OWN=" + p.text}
	if err := control.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = control.Process.Kill(); _ = control.Wait() }()
	shown := map[string]bool{}
	p.look(shown)
	if !shown["sleep's environ"] {
		t.Errorf("the control is not found, but %v", shown)
	}
	found := p.stop()
	delete(found, "sleep's environ")
	for where := range maps.Keys(found) {
		t.Errorf("the secret is in %s", where)
	}
}

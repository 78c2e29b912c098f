package store

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vmm"
)

func equal[T any](t testing.TB, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func newKey(id, owner string) access.Key {
	sum := sha256.Sum256([]byte(id + owner))
	until := now().Add(time.Hour)
	return access.Key{
		ID: id, OwnerID: owner, Name: id, Note: "of a test", Prefix: "hatch_abcdef", Hash: sum[:], CreatedAt: now(), ExpiresAt: &until,
		Rights: access.RightsOf(access.Read(access.VMs), access.Write(access.Exec)), Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	}
}

func TestKeys(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_b")
		a, b := newKey("key_a", "acc_a"), newKey("key_b", "acc_a")
		b.MadeBy = a.ID
		b.CreatedAt = a.CreatedAt.Add(time.Second)
		noError(t, s.InsertKey(ctx, a))
		noError(t, s.InsertKey(ctx, b))
		noError(t, s.InsertKey(ctx, newKey("key_c", "acc_b")))
		late := newKey("key_late", "acc_a")
		late.MadeBy = "key_revoked"
		hasCode(t, s.InsertKey(ctx, late), errs.Unauthenticated, "invalid_api_key")

		got, user, err := s.KeyByHash(ctx, b.Hash)
		noError(t, err)
		equal(t, got, b)
		equal(t, user.ID, "acc_a")
		_, _, err = s.KeyByHash(ctx, []byte("none"))
		hasCode(t, err, errs.NotFound, "key_not_found")

		twin := newKey("key_d", "acc_a")
		twin.Name = a.Name
		hasCode(t, s.InsertKey(ctx, twin), errs.Conflict, "key_exists")

		used := now()
		noError(t, s.TouchKeys(ctx, map[string]time.Time{"key_a": used, "key_none": used}))
		a.LastUsedAt = &used
		keys, err := s.Keys(ctx, access.Owner("acc_a"))
		noError(t, err)
		equal(t, keys, []access.Key{b, a})

		replaced := newKey("key_a", "acc_a")
		replaced.Hash[0]++
		noError(t, s.ReplaceKey(ctx, replaced))
		_, _, err = s.KeyByHash(ctx, a.Hash)
		hasCode(t, err, errs.NotFound, "key_not_found")

		hasCode(t, s.DeleteKey(ctx, access.Owner("acc_b"), "key_a", "acc_b"), errs.NotFound, "key_not_found")
		hasCode(t, s.DeleteKey(ctx, access.Owner("acc_a"), "\x00", "acc_a"), errs.NotFound, "key_not_found")
		noError(t, s.DeleteKey(ctx, access.Owner("acc_a"), "key_a", "acc_a"))
		hasCode(t, s.DeleteKey(ctx, access.Owner("acc_a"), "key_b", "acc_a"), errs.Conflict, "last_key")
		if keys, err := s.Keys(ctx, access.Owner("acc_a")); err != nil || len(keys) != 1 {
			t.Errorf("left: %+v, %v", keys, err)
		}
	})
}

func TestConcurrentDeletesLeaveAKey(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		account(t, s, access.SystemID) // whose row serializes them
		ids := []string{"key_a", "key_b", "key_c", "key_d"}
		for _, id := range ids {
			noError(t, s.InsertKey(t.Context(), newKey(id, "acc_a")))
		}
		var g errgroup.Group
		for _, id := range ids {
			g.Go(func() error {
				if err := s.DeleteKey(t.Context(), access.Owner("acc_a"), id, "acc_a"); !errs.HasCode(err, "last_key") {
					return err
				}
				return nil
			})
		}
		noError(t, g.Wait())
		if n := count(t, s, "api_keys"); n != 1 {
			t.Errorf("%d keys are left", n)
		}
	})
}

func TestUserIsMadeOnce(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		account(t, s, "acc_a")
		if n := count(t, s, "users"); n != 1 {
			t.Errorf("%d users", n)
		}
	})
}

func TestTemplates(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		at := now()
		a := template.Template{
			ID: "tpl_a", OwnerID: "acc_a", Name: "web",
			Overrides: machine.Overrides{
				Description: new("d"), ImageID: "img_a", VCPUs: new(2), MemMiB: new(0), BootArgs: new(""), EnableNetwork: new(false),
				UserData: new("#!\x00"), Labels: map[string]string{"a": "b"}, SSHKeys: []string{"k"},
				RateLimits: &vmm.RateLimits{NetworkOut: vmm.NetworkLimit{BytesPerSecond: 1 << 20}},
			},
			Routes:    []route.Spec{fullRoute("", "web").Spec, fullRoute("", "").Spec},
			Sharing:   access.Sharing{Visibility: access.Private},
			CreatedAt: at, UpdatedAt: at,
		}
		a.Routes[1].Subdomain = ""
		b := template.Template{ID: "tpl_b", OwnerID: "acc_a", Name: "tpl_a", CreatedAt: at.Add(time.Second), UpdatedAt: at, Sharing: a.Sharing}
		b.UserData = new("\x1f\x8b\xff") // not UTF-8
		noError(t, s.InsertTemplate(ctx, a))
		noError(t, s.InsertTemplate(ctx, b))
		twin := a
		twin.ID = "tpl_c"
		hasCode(t, s.InsertTemplate(ctx, twin), errs.Conflict, "template_exists")

		for _, key := range []string{"tpl_a", "web"} { // the id wins over the other's name
			got, err := s.Template(ctx, access.Owner("acc_a"), key)
			noError(t, err)
			equal(t, got, a)
		}
		all, err := s.Templates(ctx, access.Owner("acc_a"))
		noError(t, err)
		withoutSecrets := func(t template.Template) template.Template {
			t.UserData, t.Routes = nil, slices.Clone(t.Routes)
			for i := range t.Routes {
				t.Routes[i].Auth.Hash = nil
			}
			return t
		}
		equal(t, all, []template.Template{withoutSecrets(b), withoutSecrets(a)})
		for _, key := range []string{"none", "\x00"} {
			_, err = s.Template(ctx, access.Owner("acc_a"), key)
			hasCode(t, err, errs.NotFound, "template_not_found")
		}
		_, err = s.Template(ctx, access.Owner("acc_b"), "tpl_a")
		hasCode(t, err, errs.NotFound, "template_not_found")
		hasCode(t, s.DeleteTemplate(ctx, access.Owner("acc_b"), "tpl_a", func(template.Template) error { return nil }), errs.NotFound, "template_not_found")
		// A row of a version that had the description in its column.
		s.mustExec(t, "UPDATE templates SET description = 'old' WHERE id = 'tpl_b'")
		old, err := s.Template(ctx, access.Owner("acc_a"), "tpl_b")
		noError(t, err)
		equal(t, old.Description, new("old"))
		noError(t, s.DeleteTemplate(ctx, access.Owner("acc_a"), "tpl_a", func(template.Template) error { return nil }))
		hasCode(t, s.DeleteTemplate(ctx, access.Owner("acc_a"), "tpl_a", func(template.Template) error { return nil }), errs.NotFound, "template_not_found")
	})
}

func anyImage() image.Image {
	at := now()
	return image.Image{
		ID: "img_a", OwnerID: "acc_a", Name: "debian",
		Kernel:        image.File{Path: "/k", Digest: "sha256:0", Size: 1, ModTime: at.Add(123 * time.Nanosecond), Inode: 1<<64 - 1},
		KernelVersion: "6.1", ModulesPath: "/m",
		Rootfs:       image.File{Path: "/r", Digest: "sha256:1", Size: 1 << 40, ModTime: at, Inode: 2},
		RootfsFormat: "ext4", DiskMode: image.DiskOverlay, BootArgs: "quiet", CloudInit: true, CreatedAt: at, Sharing: access.Sharing{Visibility: access.Private},
	}
}

func TestImages(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, "acc_b")
		a := anyImage()
		noError(t, s.InsertImage(ctx, a))
		got, err := s.Image(ctx, access.Owner("acc_a"), "img_a")
		noError(t, err)
		equal(t, got, a)
		twin := a
		twin.Name = "other"
		hasCode(t, s.InsertImage(ctx, twin), errs.Conflict, "image_exists")
		twin.ID, twin.Name = "img_b", a.Name
		hasCode(t, s.InsertImage(ctx, twin), errs.Conflict, "name_taken")
		hasCode(t, s.UpsertImage(ctx, twin), errs.Conflict, "name_taken")
		theirs := a
		theirs.OwnerID, theirs.Name = "acc_b", "other"
		hasCode(t, s.UpsertImage(ctx, theirs), errs.Conflict, "image_exists")

		a.Kernel.Digest, a.CloudInit, a.Name = "sha256:2", false, ""
		noError(t, s.UpsertImage(ctx, a))
		b := image.Image{ID: "img_b", OwnerID: "acc_a", Sharing: a.Sharing, CreatedAt: a.CreatedAt.Add(time.Second)}
		noError(t, s.UpsertImage(ctx, b)) // made; two without a name do not collide
		all, err := s.Images(ctx, access.Owner("acc_a"))
		noError(t, err)
		equal(t, all, []image.Image{b, a})
		for _, id := range []string{"img_none", "\x00"} {
			_, err = s.Image(ctx, access.Owner("acc_a"), id)
			hasCode(t, err, errs.NotFound, "image_not_found")
		}
		hasCode(t, s.DeleteImage(ctx, access.Owner("acc_b"), "img_a"), errs.NotFound, "image_not_found")
		noError(t, s.DeleteImage(ctx, access.Owner("acc_a"), "img_b"))
	})
}

func TestImageInUseStays(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		users, err := s.ImageUsers(t.Context(), "img_a")
		noError(t, err)
		equal(t, users, 1)
		hasCode(t, s.DeleteImage(t.Context(), access.Owner("acc_a"), "img_a"), errs.Conflict, "image_in_use")
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		noError(t, s.DeleteImage(t.Context(), access.Owner("acc_a"), "img_a"))
	})
}

func TestSecondLockIsRefused(t *testing.T) {
	dir := t.TempDir()
	first, err := LockDir(dir)
	noError(t, err)
	if _, err := LockDir(dir); err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("the second lock: %v", err)
	}
	noError(t, first.Close())
	again, err := LockDir(dir)
	noError(t, err)
	noError(t, again.Close())
}

// A lock must not outlive its process in the children that process started.
func TestLockIsNotInherited(t *testing.T) {
	dir := t.TempDir()
	first, err := LockDir(dir)
	noError(t, err)
	child := exec.Command("cat")
	stdin, err := child.StdinPipe()
	noError(t, err)
	noError(t, child.Start())
	defer func() { noError(t, stdin.Close()); noError(t, child.Wait()) }()
	noError(t, first.Close())
	again, err := LockDir(dir)
	noError(t, err)
	noError(t, again.Close())
}

func TestLockWithoutAPID(t *testing.T) {
	dir := t.TempDir()
	first, err := LockDir(dir)
	noError(t, err)
	defer func() { noError(t, first.Close()) }()
	noError(t, os.WriteFile(filepath.Join(dir, lockFile), []byte("\x1b[31m"), 0o600))
	if _, err := LockDir(dir); err == nil || strings.Contains(err.Error(), "process") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("the second lock: %v", err)
	}
	if _, err := LockDir(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

//go:build system

package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	readyLimit  = 10 * time.Minute // for an emulated Debian guest on a slow machine
	minimalID   = "img_minimal"
	minimalMem  = 96  // MiB
	debianMem   = 512 // MiB
	debianUser  = "debian"
	smallDisk   = 128 // MiB
	normalReply = 15 * time.Second
	stopLimit   = 60 * time.Second
)

// world is shared by tests: a data directory, hatchd on it, a key to log in with,
// and guests that several tests use.
type world struct {
	dir      string // for logs and keys
	daemon   *sandbox.Daemon
	driver   []string // environment of hatchd that chooses the VMM
	probeID  string   // the image of the probe, in TestFirecracker
	client   *client.Client
	internet *internet

	signer    ssh.Signer
	publicKey string // as in authorized_keys
	keyFile   string

	warmDebian func() error // makes warmImage, once

	mu     sync.Mutex
	guests map[string]*guest
}

// newWorld starts hatchd on an empty data directory of the given name, and builds
// the images of recipes.
func newWorld(t *testing.T, name string, recipes ...string) *world {
	t.Helper()
	data, err := sandbox.PrivateDir(filepath.Join(repository(), ".cache", "e2e"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir(), guests: map[string]*guest{}}
	w.daemon = &sandbox.Daemon{
		Program: filepath.Join(repository(), "bin", "hatchd"),
		DataDir: filepath.Join(data, name),
		LogFile: filepath.Join(w.dir, "hatchd.log"), Port: apiPort,
	}
	w.driver = chosenDriver(t)
	w.warmDebian = sync.OnceValue(w.makeWarmImage)
	if err := w.daemon.Reset(); err != nil {
		t.Fatal(err)
	}
	w.makeKey(t)
	w.internet = openInternet(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of hatchd's log:\n%s", sandbox.Tail(w.daemon.LogFile, 80))
		}
	})
	w.startDaemon(t)
	t.Cleanup(func() { w.stopDaemon(t, syscall.SIGTERM) })
	w.buildImages(t, recipes)
	return w
}

func (w *world) data(below ...string) string {
	return filepath.Join(append([]string{w.daemon.DataDir}, below...)...)
}

// newKey generates a key to log in with; line is its line in authorized_keys.
func newKey(t *testing.T) (private ed25519.PrivateKey, signer ssh.Signer, line string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if signer, err = ssh.NewSignerFromKey(private); err != nil {
		t.Fatal(err)
	}
	return private, signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " e2e"
}

func (w *world) makeKey(t *testing.T) {
	t.Helper()
	var private ed25519.PrivateKey
	private, w.signer, w.publicKey = newKey(t)
	block, err := ssh.MarshalPrivateKey(private, "e2e")
	if err != nil {
		t.Fatal(err)
	}
	w.keyFile = filepath.Join(w.dir, "id_ed25519")
	if err := os.WriteFile(w.keyFile, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

// buildImages builds images, or takes them from an earlier run.
func (w *world) buildImages(t *testing.T, recipes []string) {
	t.Helper()
	for _, recipe := range recipes {
		began := time.Now()
		build, err := w.daemon.BuildImage(t.Context(), w.client, recipe)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("image %s: %.1f s, cached %v", build.ImageID, time.Since(began).Seconds(), build.Cached)
	}
}

// create makes a VM, which the end of the test deletes if it still exists.
func (w *world) create(t *testing.T, body api.CreateVM, opts client.CreateOptions) api.VM {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	v, err := w.client.CreateVM(ctx, body, opts)
	if err != nil {
		t.Fatalf("cannot create a VM: %v", err)
	}
	t.Cleanup(func() { w.cleanUp(t, v.ID) })
	return v
}

func (w *world) cleanUp(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if t.Failed() {
		t.Logf("the console of %s:\n%s", id, w.console(ctx, id))
	}
	if err := w.client.DeleteVM(ctx, id); err != nil && !client.IsNotFound(err) {
		t.Errorf("cannot delete %s: %v", id, err)
	}
}

// console returns the last lines of a VM's console.
func (w *world) console(ctx context.Context, id string) string {
	log, err := w.client.VMLogs(ctx, id, client.LogOptions{Tail: 40})
	if err != nil {
		return err.Error()
	}
	defer func() { _ = log.Close() }()
	text, _ := io.ReadAll(log) // as far as it can be read
	return string(text)
}

// await waits until the VM meets a condition.
func (w *world) await(t *testing.T, id, condition string, limit time.Duration) api.VM {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit+normalReply)
	defer cancel()
	v, err := w.client.WaitVM(ctx, id, condition, limit)
	if err != nil {
		now, _ := w.client.GetVM(ctx, id)
		t.Fatalf("%s is not %s: %v\nstate %s (%s), conditions %+v\nconsole:\n%s",
			id, condition, err, now.State, now.StateReason, now.Conditions, w.console(ctx, id))
	}
	return v
}

func (w *world) get(t *testing.T, id string) api.VM {
	t.Helper()
	v, err := w.client.GetVM(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) delete(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	if err := w.client.DeleteVM(ctx, id); err != nil {
		t.Fatalf("cannot delete %s: %v", id, err)
	}
}

// minimal is a small VM without cloud-init.
func minimal() api.CreateVM {
	return api.CreateVM{MachineSpec: api.MachineSpec{ImageID: minimalID, MemMiB: new(minimalMem), DiskMiB: new(smallDisk)}}
}

// debian is a VM of the default image that the test's key can log in to.
func (w *world) debian(userData string) api.CreateVM {
	return api.CreateVM{MachineSpec: api.MachineSpec{MemMiB: new(debianMem), UserData: &userData, SSHAuthorizedKeys: []string{w.publicKey}}}
}

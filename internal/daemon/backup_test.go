package daemon_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/host/backup"
	"github.com/hatchvm/hatch/internal/vm"
)

// furnished is a daemon with one of everything that a backup has.
type furnished struct {
	*world
	stopped, asleep, running string // ids of VMs
	snapshot, template       string
}

func furnish(t *testing.T) furnished {
	t.Helper()
	w := furnished{world: &world{dir: filepath.Join(t.TempDir(), "data"), settings: []string{"HATCH_WEBHOOK_ALLOW_PRIVATE=true"}}}
	w.start(t)
	ids := map[string]*string{"stopped": &w.stopped, "asleep": &w.asleep, "running": &w.running}
	for name, id := range ids {
		made, err := w.CreateVM(t.Context(), api.CreateVM{Name: name, MachineSpec: api.MachineSpec{UserData: new(planted)}}, client.CreateOptions{Wait: "running"})
		must(t, err)
		*id = made.ID
	}
	var snap struct{ ID string }
	must(t, json.Unmarshal(call(t, w.world, http.MethodPost, "/vms/"+w.running+"/snapshot", `{"name": "s"}`), &snap))
	w.snapshot = snap.ID
	call(t, w.world, http.MethodPost, "/vms/"+w.stopped+"/stop", "")
	call(t, w.world, http.MethodPost, "/vms/"+w.asleep+"/sleep?durable=true", "")
	call(t, w.world, http.MethodPost, "/webhooks", `{"url": "http://127.0.0.1:9/", "events": ["vm.deleted"], "secret": "`+plantedHook+`"}`)
	call(t, w.world, http.MethodPost, "/vms/"+w.stopped+"/routes", `{"subdomain": "closed", "target_port": 80, "auth": {"mode": "basic", "username": "me", "password": "`+planted+`"}}`)
	made, err := w.CreateTemplate(t.Context(), api.CreateTemplate{Name: "t", MachineSpec: api.MachineSpec{UserData: new(planted)}})
	must(t, err)
	w.template = made.ID
	must(t, os.WriteFile(filepath.Join(w.dir, "vms", w.stopped, "disk.img"), []byte("marker"), 0o600)) // the fake guest writes none
	return w
}

// backUp makes a backup while the daemon runs.
func (w furnished) backUp(t *testing.T, options daemon.BackupOptions) (archive []byte, said string) {
	t.Helper()
	var out, report bytes.Buffer
	must(t, daemon.Backup(t.Context(), w.config(t), daemon.Options{Version: "test", Log: slog.New(slog.DiscardHandler), Out: &report}, options, &out))
	if left, _ := filepath.Glob(filepath.Join(w.dir, ".backup-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	return out.Bytes(), report.String()
}

// lose moves the data directory away, as if its disk had died.
func (w furnished) lose(t *testing.T) {
	t.Helper()
	must(t, os.Rename(w.dir, w.dir+time.Now().Format(".150405.000000")))
}

func (w furnished) restore(t *testing.T, archive []byte) (said string, err error) {
	t.Helper()
	var out bytes.Buffer
	err = daemon.Restore(t.Context(), w.config(t), daemon.Options{Log: slog.New(slog.DiscardHandler), Out: &out}, bytes.NewReader(archive))
	return out.String(), err
}

// requireSecrets checks that the secrets are as they were: the user data of the template,
// and the password of the route.
func (w furnished) requireSecrets(t *testing.T) {
	t.Helper()
	if got, err := w.GetTemplate(t.Context(), w.template); err != nil || got.UserData == nil || *got.UserData != planted {
		t.Errorf("the template has other user data: %+v, %v", got.UserData, err)
	}
	for password, want := range map[string]bool{planted: true, planted + "x": false} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.proxyAddr(t), nil)
		must(t, err)
		r.Host = "closed.localhost"
		r.SetBasicAuth("me", password)
		reply, err := plain.Do(r)
		must(t, err)
		must(t, reply.Body.Close())
		if admitted := reply.StatusCode != http.StatusUnauthorized; admitted != want {
			t.Errorf("the route's password is accepted: %v, want %v (%s)", admitted, want, reply.Status)
		}
	}
}

func TestBackupOfARunningDaemonIsRestored(t *testing.T) {
	w := furnish(t)
	lists := map[string][]byte{}
	for _, path := range []string{"/templates", "/webhooks", "/routes", "/images", "/keys", "/snapshots"} {
		lists[path] = call(t, w.world, http.MethodGet, path, "")
	}
	archive, said := w.backUp(t, daemon.BackupOptions{Disks: true})
	if !strings.Contains(said, "disk of VM "+w.running+": it was running") || strings.Contains(said, w.stopped) || strings.Contains(said, w.asleep) {
		t.Errorf("the report is\n%s", said)
	}
	after, err := w.CreateVM(t.Context(), api.CreateVM{Name: "after"}, client.CreateOptions{})
	must(t, err)
	must(t, w.end())
	w.lose(t)
	if said, err := w.restore(t, archive); err != nil || !strings.Contains(said, w.running) {
		t.Fatalf("restored: %v\n%s", err, said)
	}
	w.start(t)
	for path, before := range lists {
		if now := call(t, w.world, http.MethodGet, path, ""); path != "/keys" && !bytes.Equal(now, before) {
			t.Errorf("%s: now\n%s\nbefore\n%s", path, now, before)
		}
	}
	for id, want := range map[string]string{w.stopped: api.StateStopped, w.running: api.StateStopped, w.asleep: api.StateSnapshotted} {
		v, err := w.GetVM(t.Context(), id)
		if err != nil || v.State != want || v.UserData != planted {
			t.Errorf("%s is %s (%s), want %s; user data %q, %v", id, v.State, v.StateReason, want, v.UserData, err)
		}
	}
	w.requireSecrets(t)
	if _, err := w.GetVM(t.Context(), after.ID); err == nil {
		t.Error("a VM that was made after the backup is there")
	}
	if marker, err := os.ReadFile(filepath.Join(w.dir, "vms", w.stopped, "disk.img")); err != nil || string(marker) != "marker" {
		t.Errorf("the disk has %q, %v", marker, err)
	}
	for _, request := range []string{"/vms/" + w.stopped + "/start", "/vms/" + w.asleep + "/wake", "/vms/" + w.stopped + "/restore"} {
		body := ""
		if strings.HasSuffix(request, "restore") {
			continue // of another VM
		}
		call(t, w.world, http.MethodPost, request, body)
	}
	if _, err := w.CreateVM(t.Context(), api.CreateVM{SnapshotID: w.snapshot}, client.CreateOptions{Wait: "running"}); err != nil {
		t.Errorf("a clone of the snapshot: %v", err)
	}
	must(t, w.end())
}

// A backup without keys reveals no secret, and can be used with the key only.
func TestBackupWithoutKeys(t *testing.T) {
	w := furnish(t)
	archive, _ := w.backUp(t, daemon.BackupOptions{WithoutKeys: true})
	d, err := zstd.NewReader(nil)
	must(t, err)
	defer d.Close()
	plain, err := d.DecodeAll(archive, nil)
	must(t, err)
	free(t, "the backup", plain)
	keyFile := w.config(t).SecretsKeyFile
	keys, err := os.ReadFile(keyFile)
	must(t, err)
	if bytes.Contains(plain, []byte("AGE-SECRET-KEY")) || bytes.Contains(plain, []byte(key)) {
		t.Error("the backup has a key")
	}
	must(t, w.end())
	w.lose(t)
	if said, err := w.restore(t, archive); err != nil || !strings.Contains(said, "put the key of the secrets to "+keyFile) {
		t.Errorf("%v\n%s", err, said)
	}
	err = daemon.RotateSecrets(t.Context(), w.config(t), daemon.Options{Log: slog.New(slog.DiscardHandler), Out: &bytes.Buffer{}})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the key: %v", err)
	}
	must(t, os.WriteFile(keyFile, keys, 0o600))
	w.start(t)
	w.requireSecrets(t)
	if v, err := w.GetVM(t.Context(), w.stopped); err != nil || v.UserData != planted || !strings.Contains(v.StateReason, "without --disks") {
		t.Errorf("user data %q, %s, %v", v.UserData, v.StateReason, err)
	}
	must(t, w.end())
}

// A restore that is refused leaves nothing.
func TestRestoresThatAreRefusedLeaveNothing(t *testing.T) {
	w := furnish(t)
	archive, _ := w.backUp(t, daemon.BackupOptions{Disks: true})
	must(t, w.end())
	if _, err := w.restore(t, archive); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("over a directory in use: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "hatch.db")); err != nil {
		t.Fatalf("it removed what was there: %v", err)
	}
	w.lose(t)
	tampered := bytes.Clone(archive)
	tampered[len(tampered)/2] ^= 1
	for name, bad := range map[string][]byte{"cut short": archive[:len(archive)-100], "tampered with": tampered, "empty": nil, "text": []byte("hello")} {
		if _, err := w.restore(t, bad); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		entries, err := os.ReadDir(w.dir)
		must(t, err)
		if len(entries) != 1 || entries[0].Name() != "hatchd.lock" {
			t.Errorf("%s: left %v", name, entries)
		}
	}
	elsewhere := furnished{world: &world{dir: filepath.Join(t.TempDir(), "other")}}
	if _, err := elsewhere.restore(t, archive); err == nil || !strings.Contains(err.Error(), "set HATCH_DATA_DIR to that") {
		t.Errorf("elsewhere: %v", err)
	}

	// One that was interrupted is begun anew; until then no daemon starts. The key is not of
	// the archive, which had not come to it yet.
	cfg := w.config(t)
	for name, text := range map[string]string{".restoring/secrets.key": "", ".restoring-names": `["hatch.db", "secrets.key"]`, "hatch.db": "half", "secrets.key": "an operator's", ".backup-1/x": ""} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600))
	}
	if err := daemon.Run(t.Context(), cfg, daemon.Options{Log: slog.New(slog.DiscardHandler), Out: &bytes.Buffer{}}); err == nil || !strings.Contains(err.Error(), "a restore was interrupted") {
		t.Errorf("the daemon in a directory that is not whole: %v", err)
	}
	if _, err := w.restore(t, archive); err == nil || !strings.Contains(err.Error(), "it has .backup-1, secrets.key; move") {
		t.Errorf("beside a key: %v", err)
	}
	must(t, os.Rename(cfg.SecretsKeyFile, cfg.SecretsKeyFile+time.Now().Format(".150405")))
	if _, err := w.restore(t, archive); err == nil || strings.Contains(err.Error(), "hatch.db") {
		t.Errorf("what the interrupted restore had moved stays: %v", err)
	}
	w.lose(t)
	if _, err := w.restore(t, archive); err != nil {
		t.Fatal(err)
	}
	must(t, os.Mkdir(filepath.Join(w.dir, ".backup-2"), 0o700))
	w.start(t)
	if left, _ := filepath.Glob(filepath.Join(w.dir, ".backup-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := w.GetVM(t.Context(), w.stopped); err != nil {
		t.Error(err)
	}
	must(t, w.end())
}

// onFirst calls do when it is written to for the first time.
type onFirst struct {
	bytes.Buffer
	once sync.Once
	do   func()
}

func (o *onFirst) Write(p []byte) (int, error) {
	o.once.Do(o.do)
	return o.Buffer.Write(p)
}

// A VM that is started while its disk is copied is left out, and its row says so.
func TestVMsThatAreUsedDuringABackupAreLeftOut(t *testing.T) {
	w := furnish(t)
	big := make([]byte, 8<<20)
	_, _ = rand.Read(big)
	must(t, os.WriteFile(filepath.Join(w.dir, "vms", w.stopped, "disk.img"), big, 0o600))
	archive := onFirst{do: func() { call(t, w.world, http.MethodPost, "/vms/"+w.stopped+"/start", "") }}
	var report bytes.Buffer
	must(t, daemon.Backup(t.Context(), w.config(t), daemon.Options{Log: slog.New(slog.DiscardHandler), Out: &report}, daemon.BackupOptions{Disks: true}, &archive))
	if !strings.Contains(report.String(), "disk of VM "+w.stopped+": the VM was changed, or used") {
		t.Errorf("the report is\n%s", report.String())
	}
	must(t, w.end())
	w.lose(t)
	_, err := w.restore(t, archive.Bytes())
	must(t, err)
	if _, err := os.Stat(filepath.Join(w.dir, "vms", w.stopped, "disk.img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a torn disk is restored: %v", err)
	}
	v := w.row(t, w.stopped)
	if v.State != vm.Stopped || !strings.Contains(v.StateReason, "does not have its disk") {
		t.Errorf("it is %s: %s", v.State, v.StateReason)
	}
}

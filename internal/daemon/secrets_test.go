package daemon_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/host/keyfile"
)

// planted is in every secret that the API accepts; 24 bytes, as secrets of webhooks want.
const planted = "planted-secret-012345678"

// plantedHook is planted as the secret of a webhook.
var plantedHook = "whsec_" + base64.StdEncoding.EncodeToString([]byte(planted))

// secretFields has, for each field of a request that has a secret, how one is planted
// there. TestSecretsStaySecret fails for a field of the API that looks like a secret and
// has no row.
var secretFields = map[string]func(t *testing.T, w *world, vmID string){
	"CreateVM.user_data": func(*testing.T, *world, string) {}, // the VM of the test itself
	"ForkVM.user_data": func(t *testing.T, w *world, vmID string) {
		_, err := w.ForkVM(t.Context(), vmID, api.ForkVM{UserData: new(planted)})
		must(t, err)
	},
	"CreateTemplate.user_data": func(t *testing.T, w *world, _ string) {
		_, err := w.CreateTemplate(t.Context(), api.CreateTemplate{Name: "a", MachineSpec: api.MachineSpec{UserData: new(planted)}})
		must(t, err)
	},
	"UpdateTemplate.user_data": func(t *testing.T, w *world, _ string) {
		made, err := w.CreateTemplate(t.Context(), api.CreateTemplate{Name: "b"})
		must(t, err)
		call(t, w, http.MethodPatch, "/templates/"+made.ID, `{"user_data": "`+planted+`"}`)
	},
	"RouteAuth.password": func(t *testing.T, w *world, vmID string) {
		call(t, w, http.MethodPost, "/vms/"+vmID+"/routes", `{"target_port": 80, "auth": {"mode": "basic", "username": "me", "password": "`+planted+`"}}`)
	},
	"CreateWebhook.secret": func(t *testing.T, w *world, _ string) {
		call(t, w, http.MethodPost, "/webhooks", `{"url": "http://127.0.0.1:9/", "events": ["*"], "secret": "`+plantedHook+`"}`)
	},
	"UpdateWebhook.secret": func(t *testing.T, w *world, _ string) {
		made := call(t, w, http.MethodPost, "/webhooks", `{"url": "http://127.0.0.1:9/", "events": ["*"]}`)
		var hook struct{ ID string }
		must(t, json.Unmarshal(made, &hook))
		call(t, w, http.MethodPatch, "/webhooks/"+hook.ID, `{"secret": "`+plantedHook+`"}`)
	},
}

// notSecret are fields that only look like secrets, or are of answers that show one to
// its owner: once when it is made, or by GET of one object.
var notSecret = map[string]bool{
	"Key.secret": true, "Webhook.secret": true, "VM.user_data": true, "CreatedVM.user_data": true, "Template.user_data": true,
}

var (
	looksSecret = regexp.MustCompile(`secret|password|passphrase|token|user_data|private|credential`)
	describes   = regexp.MustCompile(`_encoding$`)
)

// Secrets are in no log, list, event, delivery, file of the database or snapshot; GET
// of one object shows user data to its owner.
func TestSecretsStaySecret(t *testing.T) {
	checkSecretFields(t)
	received := receiver(t)
	var log lockedBuffer
	w := &world{dir: t.TempDir(), log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), settings: []string{"HATCH_WEBHOOK_ALLOW_PRIVATE=true"}}
	w.start(t)
	var hook struct{ ID string }
	must(t, json.Unmarshal(call(t, w, http.MethodPost, "/webhooks", `{"url": "`+received.URL+`", "events": ["*"], "secret": "`+plantedHook+`"}`), &hook))
	made, err := w.CreateVM(t.Context(), api.CreateVM{Name: "a", MachineSpec: api.MachineSpec{UserData: new(planted)}}, client.CreateOptions{IdempotencyKey: "once"})
	must(t, err)
	call(t, w, http.MethodPost, "/vms/"+made.ID+"/snapshot", `{}`)
	for _, plant := range secretFields {
		plant(t, w, made.ID)
	}
	if got, err := w.GetVM(t.Context(), made.ID); err != nil || got.UserData != planted { // the control
		t.Fatalf("GET shows %q, %v", got.UserData, err)
	}
	received.await(t)
	searchAnswers(t, w, map[string]string{"vms": made.ID, "webhooks": hook.ID, "users": "acc_admin", "images": "img_default"})
	must(t, w.end())
	free(t, "the log", log.bytes())
	searchFiles(t, w.dir)
}

// showsOwn are operations that show a secret to its owner.
var showsOwn = map[string]bool{"/vms/{id}": true, "/templates/{id}": true}

// searchAnswers looks through the answers to all GETs of the API, as far as there is an
// object for them.
func searchAnswers(t *testing.T, w *world, ids map[string]string) {
	t.Helper()
	var doc struct{ Paths map[string]map[string]any }
	must(t, json.Unmarshal(call(t, w, http.MethodGet, "/openapi.json", ""), &doc))
	for list, has := range map[string]string{"/events": "vm.created", "/vms/" + ids["vms"] + "/events": "vm.created", "/audit": "create-vm", "/webhooks/" + ids["webhooks"] + "/deliveries": "vm.created", "/users": "acc_admin", "/keys": "key_"} {
		if answer := call(t, w, http.MethodGet, list+"?limit=500", ""); !bytes.Contains(answer, []byte(has)) { // the control
			t.Errorf("%s is not looked through: %s", list, answer)
		}
	}
	for path, item := range doc.Paths {
		id := ids[strings.Split(path, "/")[1]]
		if item["get"] == nil || showsOwn[path] || strings.Contains(path, "{") && id == "" {
			continue
		}
		free(t, path, answerTo(t, w, strings.ReplaceAll(path, "{id}", id)))
	}
}

// answerTo returns the answer to a GET, also one that is refused.
func answerTo(t *testing.T, w *world, path string) []byte {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url(t)+path+"?limit=500", nil)
	must(t, err)
	r.Header.Set("X-API-Key", key)
	resp, err := plain.Do(r)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	must(t, err)
	return answer
}

// checkSecretFields compares the table with the description of the API.
func checkSecretFields(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../../api/openapi.json")
	must(t, err)
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Format string }
			}
		}
	}
	must(t, json.Unmarshal(text, &doc))
	found := map[string]bool{}
	for schema, s := range doc.Components.Schemas {
		for name, p := range s.Properties {
			if field := schema + "." + name; p.Format == "password" || looksSecret.MatchString(name) && !describes.MatchString(name) {
				found[field] = true
				if secretFields[field] == nil && !notSecret[field] {
					t.Errorf("%s looks like a secret: plant one in secretFields, or say in notSecret that it is none", field)
				}
			}
		}
	}
	for field := range secretFields {
		if !found[field] {
			t.Errorf("the API has no field %s any more", field)
		}
	}
}

// searchFiles looks through the data directory. The NoCloud disk is given to the guest
// as it is.
func searchFiles(t *testing.T, dir string) {
	t.Helper()
	searched := 0
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "seed.iso" {
			return err
		}
		content, err := os.ReadFile(path)
		searched++
		free(t, strings.TrimPrefix(path, dir), content)
		return err
	}))
	if searched < 5 {
		t.Errorf("only %d files were looked through", searched)
	}
}

// free fails if text has the secret in any form.
func free(t *testing.T, where string, text []byte) {
	t.Helper()
	for _, form := range []string{planted, base64.StdEncoding.EncodeToString([]byte(planted)), base64.RawURLEncoding.EncodeToString([]byte(planted))} {
		if bytes.Contains(text, []byte(form)) {
			t.Errorf("%s has the secret", where)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call sends a request as the admin, and returns the answer.
func call(t *testing.T, w *world, method, path, body string) []byte {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "hatchd.addr"))
	must(t, err)
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+strings.TrimSpace(string(addr))+path, strings.NewReader(body))
	must(t, err)
	req.Header.Set("X-API-Key", key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return answer
}

// deliveries counts what a webhook gets, and checks it for the secret.
type deliveries struct {
	*httptest.Server
	got chan struct{}
}

func receiver(t *testing.T) *deliveries {
	t.Helper()
	d := &deliveries{got: make(chan struct{}, 1)}
	d.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var all bytes.Buffer
		_ = r.Write(&all)
		free(t, "a webhook's request", all.Bytes())
		select {
		case d.got <- struct{}{}:
		default:
		}
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *deliveries) await(t *testing.T) {
	t.Helper()
	select {
	case <-d.got:
	case <-time.After(time.Minute):
		t.Error("the webhook gets nothing")
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// The daemon goes on after a rotation, also one that was interrupted after the new key
// was written, and the old key opens nothing any more.
func TestRotateSecrets(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.start(t)
	made, err := w.CreateVM(t.Context(), api.CreateVM{MachineSpec: api.MachineSpec{UserData: new(planted)}}, client.CreateOptions{})
	must(t, err)
	cfg := w.config(t)
	opt := daemon.Options{Log: slog.New(slog.DiscardHandler), Out: &bytes.Buffer{}}
	if err := daemon.RotateSecrets(t.Context(), cfg, opt); err == nil || !strings.Contains(err.Error(), "another hatchd") {
		t.Errorf("beside the daemon: %v", err)
	}
	must(t, w.end())
	keys := keyfile.File{Path: cfg.SecretsKeyFile}
	before, err := keys.Load()
	must(t, err)
	must(t, daemon.RotateSecrets(t.Context(), cfg, opt))
	after, err := keys.Load()
	must(t, err)
	if len(after) != 1 || after[0].String() == before[0].String() {
		t.Fatalf("the key file has %d keys", len(after))
	}
	w.start(t)
	if got, err := w.GetVM(t.Context(), made.ID); err != nil || got.UserData != planted {
		t.Errorf("GET shows %q, %v", got.UserData, err)
	}
	must(t, w.end())
	must(t, keys.Store(before))
	if err := daemon.RotateSecrets(t.Context(), cfg, opt); err == nil || !strings.Contains(err.Error(), "restore the right file") {
		t.Errorf("with the old key: %v", err)
	}
}

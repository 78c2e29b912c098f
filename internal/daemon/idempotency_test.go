package daemon_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// post sends one request with a key, and returns the status, whether the answer is
// marked as a replay, and its body.
func (w *world) post(t *testing.T, path, body string) (status int, replayed bool, answer map[string]any) {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "hatchd.addr"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+strings.TrimSpace(string(addr))+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", strings.ReplaceAll(path, "/", "."))
	r.Close = true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return resp.StatusCode, resp.Header.Get("Idempotency-Replayed") == "true", answer
}

// TestRepeatedRequests sends each POST that makes something again, also to the next
// hatchd: it answers with what the first has made, without a secret.
func TestRepeatedRequests(t *testing.T) {
	w := &world{dir: t.TempDir(), settings: []string{"HATCH_WEBHOOK_ALLOW_PRIVATE=true"}}
	w.start(t)
	v, err := w.CreateVM(t.Context(), api.CreateVM{Name: "base"}, client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hook, err := w.CreateWebhook(t.Context(), api.CreateWebhook{URL: "http://127.0.0.1:1/", Events: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	requests := []struct{ path, body string }{
		{"/vms", `{"name":"again"}`},
		{"/vms/" + v.ID + "/snapshot", `{"name":"snap"}`},
		{"/vms/" + v.ID + "/fork", `{"count":2}`},
		{"/vms/" + v.ID + "/exec", `{"command":"echo hello"}`},
		{"/vms/" + v.ID + "/routes", `{"target_port":80}`},
		{"/webhooks", `{"url":"http://127.0.0.1:1/","events":["*"]}`},
		{"/webhooks/" + hook.ID + "/test", ""},
		{"/templates", `{"name":"small"}`},
		{"/keys", `{"name":"ci"}`},
	}
	made := map[string]map[string]any{}
	for _, r := range requests {
		status, replayed, answer := w.post(t, r.path, r.body)
		if status > 202 || replayed {
			t.Fatalf("POST %s: %d, replayed %v: %v", r.path, status, replayed, answer)
		}
		made[r.path] = answer
	}
	again := func() {
		t.Helper()
		for _, r := range requests {
			status, replayed, answer := w.post(t, r.path, r.body)
			if status > 202 || !replayed || answer["secret"] != nil {
				t.Errorf("POST %s again: %d, replayed %v: %v", r.path, status, replayed, answer)
			}
			if got, want := idOf(answer), idOf(made[r.path]); got != want {
				t.Errorf("POST %s made %s, and then %s", r.path, want, got)
			}
		}
	}
	again()
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	defer func() { _ = w.end() }()
	requests = append(requests[:3], requests[4:]...) // the fake guest has lost its commands
	again()
	if err := w.DeleteVM(t.Context(), idOf(made["/vms"])); err != nil {
		t.Fatal(err)
	}
	if status, _, answer := w.post(t, "/vms", `{"name":"again"}`); status != http.StatusConflict || answer["code"] != "idempotency_object_gone" {
		t.Errorf("after the delete: %d %v", status, answer)
	}
	if status, _, answer := w.post(t, "/vms", `{"name":"other"}`); status != http.StatusConflict || answer["code"] != "idempotency_key_reused" {
		t.Errorf("another request: %d %v", status, answer)
	}
}

// idOf returns the id of an answer, or of the first of its VMs.
func idOf(answer map[string]any) string {
	if vms, ok := answer["vms"].([]any); ok {
		answer, _ = vms[0].(map[string]any)
	}
	id, _ := answer["id"].(string)
	return id
}

package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect returns a client of a server that answers as handle does.
func connect(t *testing.T, handle http.HandlerFunc) *client.Client {
	t.Helper()
	server := httptest.NewServer(handle)
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	c, err := client.New(server.URL+"/", "hk_key", client.WithHTTPClient(&http.Client{Transport: transport}), client.WithUserAgent("test"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRequests(t *testing.T) {
	type call func(context.Context, *client.Client) error
	name := api.CreateTemplate{Name: "n"}
	cases := map[string]call{
		`POST /vms?wait=ready&wait_timeout=1m30s {"name":"web"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateVM(ctx, api.CreateVM{Name: "web"}, client.CreateOptions{Wait: "ready", WaitTimeout: 90 * time.Second, IdempotencyKey: "k"})
			return err
		},
		`POST /vms {}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateVM(ctx, api.CreateVM{}, client.CreateOptions{})
			return err
		},
		`GET /vms/vm_1`:          func(ctx context.Context, c *client.Client) error { _, err := c.GetVM(ctx, "vm_1"); return err },
		`GET /vms/a%2Fb%3Fc`:     func(ctx context.Context, c *client.Client) error { _, err := c.GetVM(ctx, "a/b?c"); return err },
		`DELETE /vms/vm_1`:       func(ctx context.Context, c *client.Client) error { return c.DeleteVM(ctx, "vm_1") },
		`POST /vms/vm_1/start`:   func(ctx context.Context, c *client.Client) error { _, err := c.StartVM(ctx, "vm_1"); return err },
		`POST /vms/vm_1/stop`:    func(ctx context.Context, c *client.Client) error { _, err := c.StopVM(ctx, "vm_1"); return err },
		`POST /vms/vm_1/restart`: func(ctx context.Context, c *client.Client) error { _, err := c.RestartVM(ctx, "vm_1"); return err },
		`POST /vms/vm_1/sleep`:   func(ctx context.Context, c *client.Client) error { _, err := c.SleepVM(ctx, "vm_1"); return err },
		`POST /vms/vm_1/wake`:    func(ctx context.Context, c *client.Client) error { _, err := c.WakeVM(ctx, "vm_1"); return err },
		`POST /vms/vm_1/snapshot {"name":"n","stop":true}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateSnapshot(ctx, "vm_1", api.CreateSnapshot{Name: "n", Stop: true})
			return err
		},
		`GET /snapshots/snap_1`:    func(ctx context.Context, c *client.Client) error { _, err := c.GetSnapshot(ctx, "snap_1"); return err },
		`DELETE /snapshots/snap_1`: func(ctx context.Context, c *client.Client) error { return c.DeleteSnapshot(ctx, "snap_1") },
		`POST /vms/vm_1/restore {"snapshot_id":"n"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.RestoreVM(ctx, "vm_1", "n")
			return err
		},
		`POST /vms/vm_1/restore {}`: func(ctx context.Context, c *client.Client) error { _, err := c.RestoreVM(ctx, "vm_1", ""); return err },
		`POST /vms/vm_1/fork {"name":"n"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.ForkVM(ctx, "vm_1", api.ForkVM{Name: "n"})
			return err
		},
		`POST /vms {"snapshot_id":"n","count":1}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateVMs(ctx, api.CreateVM{SnapshotID: "n"}, client.CreateOptions{})
			return err
		},
		`POST /vms/vm_1/pause`:  func(ctx context.Context, c *client.Client) error { _, err := c.PauseVM(ctx, "vm_1"); return err },
		`POST /vms/vm_1/resume`: func(ctx context.Context, c *client.Client) error { _, err := c.ResumeVM(ctx, "vm_1"); return err },
		`GET /images/img_1`:     func(ctx context.Context, c *client.Client) error { _, err := c.GetImage(ctx, "img_1"); return err },
		`DELETE /images/img_1`:  func(ctx context.Context, c *client.Client) error { return c.DeleteImage(ctx, "img_1") },
		`POST /images/img_1/warm {"mem_mib":64}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.WarmImage(ctx, "img_1", api.WarmImage{MemMiB: new(64)})
			return err
		},
		`GET /images/builds/b`:         func(ctx context.Context, c *client.Client) error { _, err := c.GetImageBuild(ctx, "b"); return err },
		`POST /templates {"name":"n"}`: func(ctx context.Context, c *client.Client) error { _, err := c.CreateTemplate(ctx, name); return err },
		`GET /templates/tpl_1`:         func(ctx context.Context, c *client.Client) error { _, err := c.GetTemplate(ctx, "tpl_1"); return err },
		`DELETE /templates/tpl_1`:      func(ctx context.Context, c *client.Client) error { return c.DeleteTemplate(ctx, "tpl_1") },
		`POST /keys {"name":"k"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateKey(ctx, api.CreateKey{Name: "k"})
			return err
		},
		`DELETE /keys/key_1`: func(ctx context.Context, c *client.Client) error { return c.DeleteKey(ctx, "key_1") },
		`GET /healthz`:       func(ctx context.Context, c *client.Client) error { _, err := c.Health(ctx); return err },
		`POST /images {"kernel_path":"/k","rootfs_path":"/r"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateImage(ctx, api.CreateImage{KernelPath: "/k", RootfsPath: "/r"})
			return err
		},
		`POST /images/builds {"recipe":"minimal"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.StartImageBuild(ctx, api.BuildImage{Recipe: "minimal"})
			return err
		},
		`POST /vms/vm_1/exec {"command":["a","b"],"timeout_ms":5}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.RunExec(ctx, "vm_1", api.RunExec{Command: api.Command{Argv: []string{"a", "b"}}, TimeoutMS: 5})
			return err
		},
		`POST /vms/vm_1/exec {"command":["cm0=","6Q=="],"env":{"A":"Yg=="},"encoding":"base64"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.RunExec(ctx, "vm_1", api.RunExec{Command: api.Command{Argv: []string{"rm", "\xe9"}}, Env: map[string]string{"A": "b"}})
			return err
		},
		`POST /vms/vm_1/fork {"user_data":"H4s=","user_data_encoding":"base64"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.ForkVM(ctx, "vm_1", api.ForkVM{UserData: new("\x1f\x8b")})
			return err
		},
		`POST /vms {"user_data":"H4s=","user_data_encoding":"base64"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateVM(ctx, api.CreateVM{MachineSpec: api.MachineSpec{UserData: new("\x1f\x8b")}}, client.CreateOptions{})
			return err
		},
		`POST /templates {"name":"a","user_data":"H4s=","user_data_encoding":"base64"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateTemplate(ctx, api.CreateTemplate{Name: "a", MachineSpec: api.MachineSpec{UserData: new("\x1f\x8b")}})
			return err
		},
		`POST /vms/vm_1/exec {"command":"a","background":true}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.StartExec(ctx, "vm_1", api.RunExec{Command: api.Command{Shell: "a"}})
			return err
		},
		`GET /vms/vm_1/execs/exec_1`: func(ctx context.Context, c *client.Client) error {
			_, err := c.GetExec(ctx, "vm_1", "exec_1")
			return err
		},
		`DELETE /vms/vm_1/execs/exec_1`: func(ctx context.Context, c *client.Client) error { return c.DeleteExec(ctx, "vm_1", "exec_1") },
		`POST /vms/vm_1/execs/exec_1/signal {"signal":"TERM"}`: func(ctx context.Context, c *client.Client) error {
			return c.SignalExec(ctx, "vm_1", "exec_1", "TERM")
		},
		`POST /vms/vm_1/execs/exec_1/stdin {"data":"a","close":true}`: func(ctx context.Context, c *client.Client) error {
			return c.WriteExec(ctx, "vm_1", "exec_1", api.ExecInput{Data: "a", Close: true})
		},
		`POST /vms/vm_1/execs/exec_1/resize {"rows":1,"cols":2}`: func(ctx context.Context, c *client.Client) error {
			return c.ResizeExec(ctx, "vm_1", "exec_1", api.TerminalSize{Rows: 1, Cols: 2})
		},
		`GET /vms/vm_1/execs/exec_1/logs?follow=true`: func(ctx context.Context, c *client.Client) error {
			log, err := c.ExecLogs(ctx, "vm_1", "exec_1", true)
			if err == nil {
				err = log.Close()
			}
			return err
		},
		`GET /vms/vm_1/wait?for=port%3A80&timeout=1m0s`: func(ctx context.Context, c *client.Client) error {
			_, err := c.WaitVM(ctx, "vm_1", "port:80", time.Minute)
			return err
		},
	}
	for want, do := range cases {
		c := connect(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got := strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, body))
			if got != want {
				t.Errorf("sent %s, want %s", got, want)
			}
			if r.Header.Get("Authorization") != "Bearer hk_key" || r.Header.Get("User-Agent") != "test" {
				t.Errorf("%s: headers %v", want, r.Header)
			}
			if (len(body) > 0) != (r.Header.Get("Content-Type") == "application/json") {
				t.Errorf("%s: sent as %q", want, r.Header.Get("Content-Type"))
			}
			if strings.Contains(want, "wait_timeout") != (r.Header.Get("Idempotency-Key") == "k") {
				t.Errorf("%s: idempotency key %q", want, r.Header.Get("Idempotency-Key"))
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"status":"ok"}`)
		})
		if err := do(t.Context(), c); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestRetries expects that a call is repeated when the server says that it may be, and
// that repeating is safe.
func TestRetries(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		after  string
		opts   []client.Option
		do     func(context.Context, *client.Client) error
		want   int
	}{
		"a lookup":           {503, "1", []client.Option{client.WithRetries(1)}, getOne, 2},
		"a full host":        {507, "1", []client.Option{client.WithRetries(1)}, getOne, 2},
		"twice":              {429, "1", []client.Option{client.WithRetries(2)}, getOne, 3},
		"without the option": {503, "1", nil, getOne, 1},
		"without a time":     {503, "", []client.Option{client.WithRetries(1)}, getOne, 1},
		"another status":     {409, "1", []client.Option{client.WithRetries(1)}, getOne, 1},
		"a POST":             {503, "1", []client.Option{client.WithRetries(1)}, createKey, 1},
		"a POST that can be": {503, "1", []client.Option{client.WithRetries(1)}, func(ctx context.Context, c *client.Client) error {
			return createKey(client.WithIdempotencyKey(ctx, "k"), c)
		}, 2},
		"a POST in progress": {409, "1", []client.Option{client.WithRetries(1)}, func(ctx context.Context, c *client.Client) error {
			return createKey(client.WithIdempotencyKey(ctx, "k"), c)
		}, 2},
		"the content of a file": {503, "1", []client.Option{client.WithRetries(1)}, writeFile, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sent := 0
				refuse := transport(func(*http.Request) *http.Response {
					sent++
					text := `{"error":"not now"}`
					if tc.status == 409 && tc.want > 1 {
						text = `{"error":"not now","code":"idempotency_in_progress"}`
					}
					resp := jsonResponse(tc.status, text)
					resp.Header.Set("Retry-After", tc.after)
					return resp
				})
				c, err := client.New("http://hatch", "k", append(tc.opts, client.WithHTTPClient(&http.Client{Transport: refuse}))...)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if err := tc.do(t.Context(), c); err == nil || sent != tc.want {
					t.Errorf("sent %d times, want %d; %v", sent, tc.want, err)
				}
				if waited := time.Since(began); waited != time.Duration(tc.want-1)*time.Second {
					t.Errorf("waited %s", waited)
				}
			})
		})
	}
}

func getOne(ctx context.Context, c *client.Client) error {
	_, err := c.GetVM(ctx, "vm_1")
	return err
}

func createKey(ctx context.Context, c *client.Client) error {
	_, err := c.CreateKey(ctx, api.CreateKey{Name: "ci"})
	return err
}

func writeFile(ctx context.Context, c *client.Client) error {
	_, err := c.WriteFile(ctx, "vm_1", "/a", strings.NewReader("text"), client.WriteOptions{})
	return err
}

func TestIdempotencyKeyOfAContext(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, r *http.Request) {
		if (r.Method == http.MethodPost) != (r.Header.Get("Idempotency-Key") == "k") {
			t.Errorf("%s has the key %q", r.Method, r.Header.Get("Idempotency-Key"))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	})
	ctx := client.WithIdempotencyKey(t.Context(), "k")
	_, err := c.ForkVM(ctx, "vm_1", api.ForkVM{})
	if _, keyErr := c.CreateKey(ctx, api.CreateKey{Name: "ci"}); err != nil || keyErr != nil {
		t.Error(err, keyErr)
	}
	if err := c.DeleteVM(ctx, "vm_1"); err != nil {
		t.Error(err)
	}
}

func TestLists(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `[{"id":"`+r.URL.Path+`"}]`) })
	images, err := c.ListImages(t.Context())
	if err != nil || len(images) != 1 || images[0].ID != "/images" {
		t.Errorf("%v, %v", images, err)
	}
	templates, err := c.ListTemplates(t.Context())
	if err != nil || len(templates) != 1 || templates[0].ID != "/templates" {
		t.Errorf("%v, %v", templates, err)
	}
	keys, err := c.ListKeys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].ID != "/keys" {
		t.Errorf("%v, %v", keys, err)
	}
}

// TestListVMsPages follows three pages; the link's host must not be followed.
func TestListVMsPages(t *testing.T) {
	var asked []string
	c := connect(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		n := len(asked)
		if n < 3 {
			w.Header().Set("Link", fmt.Sprintf(`<http://evil.example/vms?after=vm_%d&limit=9>; rel="next"`, n))
		}
		_, _ = fmt.Fprintf(w, `[{"id":"vm_%d"}]`, n)
	})
	var got []string
	opts := client.ListOptions{State: "running", Name: "n", Labels: map[string]string{"b": "2", "a": "1"}, PageSize: 1}
	for vm, err := range c.ListVMs(t.Context(), opts) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, vm.ID)
	}
	if strings.Join(got, " ") != "vm_1 vm_2 vm_3" {
		t.Errorf("listed %v", got)
	}
	const filter = "label=a%3D1&label=b%3D2&limit=1&name=n&state=running"
	if want := []string{filter, "after=vm_1&" + filter, "after=vm_2&" + filter}; strings.Join(asked, "\n") != strings.Join(want, "\n") {
		t.Errorf("asked for %v", asked)
	}
}

func TestListVMsStops(t *testing.T) {
	calls := 0
	c := connect(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.Header().Set("Link", `</vms?after=x>; rel="next"`)
		_, _ = io.WriteString(w, `[{"id":"vm_1"},{"id":"vm_2"}]`)
	})
	for _, err := range c.ListVMs(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if calls != 1 {
		t.Errorf("%d pages for one VM", calls)
	}
}

func TestErrors(t *testing.T) {
	answer := func(status int, kind, body string) error {
		c := connect(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
		_, err := c.GetVM(t.Context(), "vm_1")
		return err
	}
	err := answer(404, "application/problem+json", `{"status":404,"error":"there is no VM","code":"vm_not_found","hint":"list them"}`)
	var e *client.Error
	if !errors.As(err, &e) || e.Status() != 404 || err.Error() != "there is no VM (list them)" || !client.HasCode(err, "vm_not_found") {
		t.Errorf("%v", err)
	}
	for status, is := range map[int]func(error) bool{
		400: client.IsInvalid, 401: client.IsUnauthenticated, 404: client.IsNotFound, 409: client.IsConflict,
		503: client.IsUnavailable, 507: client.IsExhausted,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			for _, other := range []int{400, 401, 404, 409, 500, 503, 507} {
				err := answer(other, "application/problem+json", `{"error":"x"}`)
				if is(fmt.Errorf("wrapped: %w", err)) != (other == status) {
					t.Errorf("status %d is taken for %d", other, status)
				}
			}
		})
	}
	if !client.IsTimeout(answer(409, "application/problem+json", `{"error":"x","code":"wait_timeout"}`)) {
		t.Error("a wait's timeout is not known")
	}
	for _, kind := range []string{"text/html", "application/json", ""} {
		t.Run(kind, func(t *testing.T) {
			err := answer(502, kind, "<html>"+strings.Repeat("bad", 1<<20))
			if err == nil || !strings.Contains(err.Error(), "502 Bad Gateway") || len(err.Error()) > 200 {
				t.Errorf("%q: %.300v", kind, err)
			}
		})
	}
	if err := answer(301, "text/html", ""); err == nil || !strings.Contains(err.Error(), "301") {
		t.Errorf("a redirect is %v", err)
	}
	if err := answer(200, "application/json", "<html>"); err == nil || !strings.Contains(err.Error(), "cannot read the server's response") {
		t.Errorf("nonsense is %v", err)
	}
}

func TestHealthNotWell(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(503)
		_, _ = io.WriteString(w, `{"status":"degraded","parts":[{"name":"database","status":"degraded"}]}`)
	})
	if h, err := c.Health(t.Context()); err != nil || h.Status != "degraded" || len(h.Parts) != 1 {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestUnreachable(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	c, err := client.New(server.URL, "hk_key")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.GetVM(t.Context(), "vm_1")
	if err == nil || !strings.HasPrefix(err.Error(), "cannot reach "+server.URL+": ") || strings.Count(err.Error(), server.URL) != 1 {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.GetVM(ctx, "vm_1"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, base := range []string{"", "localhost:8080", "ftp://host", "http://", "http://u:p@host", "http://host?x=1", "://", "http://host/#a"} {
		t.Run(base, func(t *testing.T) {
			if _, err := client.New(base, "k"); err == nil {
				t.Errorf("%q is taken as an address", base)
			}
		})
	}
	if _, err := client.New("http://host", "a\nb"); err == nil || strings.Contains(err.Error(), "b") && strings.Contains(err.Error(), "\n") {
		t.Errorf("a key with a line break: %v", err)
	}
}

func TestBadIDs(t *testing.T) {
	c := connect(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	for _, id := range []string{"", ".", ".."} {
		t.Run(id, func(t *testing.T) {
			if err := c.DeleteVM(t.Context(), id); err == nil {
				t.Errorf("%q is taken as an id", id)
			}
		})
	}
}

func TestLogs(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	for want, open := range map[string]func() (io.ReadCloser, error){
		"/vms/vm_1/logs?source=console": func() (io.ReadCloser, error) {
			return c.VMLogs(t.Context(), "vm_1", client.LogOptions{})
		},
		"/vms/vm_1/logs?follow=true&source=console&tail=5": func() (io.ReadCloser, error) {
			return c.VMLogs(t.Context(), "vm_1", client.LogOptions{Tail: 5, Follow: true})
		},
		"/images/builds/b/log":             func() (io.ReadCloser, error) { return c.ImageBuildLog(t.Context(), "b", false) },
		"/images/builds/b/log?follow=true": func() (io.ReadCloser, error) { return c.ImageBuildLog(t.Context(), "b", true) },
	} {
		t.Run(want, func(t *testing.T) {
			body, err := open()
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			if err != nil || string(got) != want {
				t.Errorf("read %q, %v; want %q", got, err, want)
			}
			_ = body.Close()
		})
	}
}

func TestConsole(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/vms/vm_1/console?readonly=true" || r.Header.Get("Authorization") != "Bearer hk_key" {
			t.Errorf("%s with %v", r.RequestURI, r.Header)
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		_, typed, err := conn.Read(r.Context())
		if err == nil {
			_ = conn.Write(r.Context(), websocket.MessageBinary, append(typed, '!'))
		}
		_ = conn.Close(websocket.StatusNormalClosure, "")
	})
	console, err := c.VMConsole(t.Context(), "vm_1", true)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	if _, err := io.WriteString(console, "hello"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(console); err != nil || string(got) != "hello!" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestConsoleRefused(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(409)
		_, _ = io.WriteString(w, `{"status":409,"error":"another client writes","code":"console_taken"}`)
	})
	if _, err := c.VMConsole(t.Context(), "vm_1", false); !client.IsConflict(err) || err.Error() != "another client writes" {
		t.Errorf("%v", err)
	}
}

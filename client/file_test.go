package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func TestFileRequests(t *testing.T) {
	type call func(context.Context, *client.Client) error
	const odd = "/a b/\xff+"
	mode := uint32(0o4755)
	for want, do := range map[string]call{
		`GET /vms/vm_1/files?path=%2Fa+b%2F%FF%2B  bytes=0-9`: func(ctx context.Context, c *client.Client) error {
			_, err := c.ReadFile(ctx, "vm_1", odd, client.FilePart{Length: 10})
			return err
		},
		`GET /vms/vm_1/files?path=%2Ff  bytes=5-`: func(ctx context.Context, c *client.Client) error {
			_, err := c.ReadFile(ctx, "vm_1", "/f", client.FilePart{Offset: 5})
			return err
		},
		`GET /vms/vm_1/files?path=%2Ff  bytes=-5`: func(ctx context.Context, c *client.Client) error {
			_, err := c.ReadFile(ctx, "vm_1", "/f", client.FilePart{Offset: -5})
			return err
		},
		`PUT /vms/vm_1/files?mode=4755&owner=1%3A2&parents=true&path=%2Ff content`: func(ctx context.Context, c *client.Client) error {
			_, err := c.WriteFile(ctx, "vm_1", "/f", strings.NewReader("content"), client.WriteOptions{Mode: &mode, Owner: "1:2", Parents: true})
			return err
		},
		`PUT /vms/vm_1/files/tar?owner=root&path=%2Fd tar`: func(ctx context.Context, c *client.Client) error {
			_, err := c.WriteTree(ctx, "vm_1", "/d", "root", strings.NewReader("tar"))
			return err
		},
		`POST /vms/vm_1/files/mkdir {"path_encoded":"%2Fa%20b%2F%FF+","mode":"4755","owner":"me","parents":true}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.MakeDirectory(ctx, "vm_1", odd, client.DirectoryOptions{Mode: &mode, Owner: "me", Parents: true})
			return err
		},
		`POST /vms/vm_1/files/rename {"from":"/a","to_encoded":"%2Fa%20b%2F%FF+"}`: func(ctx context.Context, c *client.Client) error {
			_, err := c.RenameFile(ctx, "vm_1", "/a", odd)
			return err
		},
		`DELETE /vms/vm_1/files?path=%2Fd&recursive=true`: func(ctx context.Context, c *client.Client) error {
			return c.RemoveFile(ctx, "vm_1", "/d", true)
		},
	} {
		t.Run(want, func(t *testing.T) {
			c := connect(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				got := strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI, body, r.Header.Get("Range")))
				if got != want {
					t.Errorf("sent %s, want %s", got, want)
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"path":"/f"}`)
			})
			if err := do(t.Context(), c); err != nil {
				t.Errorf("%s: %v", want, err)
			}
		})
	}
}

// TestCutAnswers takes care that no part passes for the whole.
func TestCutAnswers(t *testing.T) {
	cut := func(text string) *client.Client {
		return connect(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
	}
	ctx := t.Context()
	content, err := cut("half").ReadFile(ctx, "vm_1", "/f", client.FilePart{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(content); err == nil {
		t.Error("half a file looks like a whole one")
	}
	_ = content.Close()
	for _, half := range []string{`[{"path":"/a"},`, `[{"path":"/a"}`} {
		t.Run(half, func(t *testing.T) {
			var last error
			n := 0
			for _, err := range cut(half).ListFiles(ctx, "vm_1", "/") {
				last = err
				n++
			}
			if last == nil || n != 2 {
				t.Errorf("half a directory looks like a whole one: %d entries, %v", n, last)
			}
		})
	}
	changes, err := cut(":\n\ndata: {\"kind\":\"create\",\"path\":\"/a\"}\n\n").WatchFiles(ctx, "vm_1", "/", true)
	if err != nil {
		t.Fatal(err)
	}
	var seen []api.FileChange
	for change, err := range changes {
		if err == nil {
			seen = append(seen, change)
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the watch ends with %v", err)
		}
	}
	if len(seen) != 1 || seen[0].Path != "/a" {
		t.Errorf("saw %+v", seen)
	}
}

func TestExactNames(t *testing.T) {
	f := api.File{Path: "/%41", Name: "\uFFFD", NameEncoded: "%FF", Target: "t"}
	if client.PathOf(f) != "/%41" || client.NameOf(f) != "\xff" || client.TargetOf(f) != "t" {
		t.Errorf("%q, %q, %q", client.PathOf(f), client.NameOf(f), client.TargetOf(f))
	}
}

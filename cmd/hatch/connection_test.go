package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWhereTheKeyComesFrom(t *testing.T) {
	home, data := t.TempDir(), t.TempDir()
	explicit := filepath.Join(t.TempDir(), "explicit")
	writeFile(t, explicit, "explicit\n")
	writeFile(t, filepath.Join(data, "admin.key"), "admin\n")
	writeFile(t, filepath.Join(home, ".config/hatch/key"), "own\n")
	lock, err := os.Create(filepath.Join(data, "hatchd.lock")) // this process is the hatchd of data
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	own := map[string]string{}
	for network, at := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "tcp": ":0"} {
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		own[network] = fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	}
	tunnel := foreignListener(t)
	empty := filepath.Join(home, "empty")
	writeFile(t, empty, "\n")

	for name, tc := range map[string]struct {
		flag, url string
		env       map[string]string
		want      string
		fails     bool
	}{
		"flag first":           {flag: explicit, env: map[string]string{"HATCH_API_KEY": "env"}, want: "explicit"},
		"environment":          {env: map[string]string{"HATCH_API_KEY": "env\n", "HATCH_DATA_DIR": data}, want: "env"},
		"data directory":       {url: "http://127.0.0.1:" + own["tcp4"], env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "admin"},
		"not for other hosts":  {url: "https://hatch.example", env: map[string]string{"HATCH_DATA_DIR": data}, want: ""},
		"own, for any host":    {url: "https://hatch.example", env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "own"},
		"loopback address":     {url: "http://[::1]:" + own["tcp6"], env: map[string]string{"HATCH_DATA_DIR": data}, want: "admin"},
		"all addresses":        {url: "http://localhost:" + own["tcp"], env: map[string]string{"HATCH_DATA_DIR": data}, want: "admin"},
		"not for a tunnel":     {url: tunnel, env: map[string]string{"HATCH_DATA_DIR": data}, want: ""},
		"own, for a tunnel":    {url: tunnel, env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "own"},
		"not another hatchd's": {url: "http://127.0.0.1:" + own["tcp4"], env: map[string]string{"HATCH_DATA_DIR": home}, want: ""},
		"nothing listens":      {url: "http://127.0.0.1:1", env: map[string]string{"HATCH_DATA_DIR": data}, want: ""},
		"none":                 {env: map[string]string{"HATCH_DATA_DIR": home}, want: ""},
		"an empty file":        {flag: empty, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := &connection{keyFile: tc.flag, url: tc.url, getenv: func(n string) string { return tc.env[n] }}
			at, err := c.target()
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.key(at)
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// foreignListener returns the URL of a listener of another process, as a tunnel is:
// this program itself, run anew as a test that only listens.
func foreignListener(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestListenerOfAnotherProcess$")
	cmd.Env = append(os.Environ(), "HATCH_TEST_LISTEN=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		_, err = cmd.StdinPipe() // the other process ends with it
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(addr)
}

func TestListenerOfAnotherProcess(t *testing.T) {
	if os.Getenv("HATCH_TEST_LISTEN") == "" {
		return // it is a part of TestWhereTheKeyComesFrom
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(os.Stdout, l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

type named200 string

func (n named200) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{Status: string(n), Body: io.NopCloser(strings.NewReader(""))}, nil
}

// Requests that only read have the shorter bound.
func TestEveryRequestIsBounded(t *testing.T) {
	for target, want := range map[string]string{
		"GET /vms": "reads", "GET /vms/v/files": "reads", "GET /events": "reads",
		"GET /vms/v/wait": "works", "GET /vms/v/logs?follow=true": "works", "POST /vms": "works", "DELETE /vms/v": "works",
	} {
		t.Run(target, func(t *testing.T) {
			method, path, _ := strings.Cut(target, " ")
			resp, err := boundedTransport{named200("reads"), named200("works")}.RoundTrip(httptest.NewRequest(method, path, nil))
			if err != nil {
				t.Fatal(err)
			}
			if _ = resp.Body.Close(); resp.Status != want {
				t.Errorf("sent as one of %s", resp.Status)
			}
		})
	}
	plain, err := newHTTPClient(target{})
	if err != nil {
		t.Fatal(err)
	}
	bounds := plain.Transport.(boundedTransport)
	for _, transport := range []http.RoundTripper{bounds.reads, bounds.works} {
		if transport.(*http.Transport).ResponseHeaderTimeout == 0 {
			t.Error("a transport has no bound")
		}
	}
}

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
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
	empty := filepath.Join(home, "empty")
	writeFile(t, empty, "\n")

	for name, tc := range map[string]struct {
		flag, url string
		env       map[string]string
		want      string
		fails     bool
	}{
		"flag first":          {flag: explicit, env: map[string]string{"HATCH_API_KEY": "env"}, want: "explicit"},
		"environment":         {env: map[string]string{"HATCH_API_KEY": "env\n", "HATCH_DATA_DIR": data}, want: "env"},
		"data directory":      {env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "admin"},
		"not for other hosts": {url: "https://hatch.example", env: map[string]string{"HATCH_DATA_DIR": data}, want: ""},
		"own, for any host":   {url: "https://hatch.example", env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "own"},
		"loopback address":    {url: "http://[::1]:8080", env: map[string]string{"HATCH_DATA_DIR": data}, want: "admin"},
		"none":                {env: map[string]string{"HATCH_DATA_DIR": home}, want: ""},
		"an empty file":       {flag: empty, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := &connection{keyFile: tc.flag, url: tc.url, getenv: func(n string) string { return tc.env[n] }}
			got, err := c.key()
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
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
			if err != nil || resp.Status != want {
				t.Errorf("sent as one of %s, %v", resp.Status, err)
			}
		})
	}
	bounds := newHTTPClient().Transport.(boundedTransport)
	for _, transport := range []http.RoundTripper{bounds.reads, bounds.works} {
		if transport.(*http.Transport).ResponseHeaderTimeout == 0 {
			t.Error("a transport has no bound")
		}
	}
}

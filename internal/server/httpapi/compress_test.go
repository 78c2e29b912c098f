package httpapi_test

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/event"
)

// raw sends a request whose answer is not decompressed.
func (s *server) raw(t *testing.T, target, encoding string, headers ...string) (reply, string) {
	t.Helper()
	r := s.request(t, "GET", target, "")
	r.Header.Set("Accept-Encoding", encoding)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp, body}, string(body)
}

func TestAnswersAreCompressed(t *testing.T) {
	s := newServer(t)
	for range 20 {
		s.vms.all = append(s.vms.all, sampleVM(knownVM))
		s.events.log = append(s.events.log, sampleEvent(int64(len(s.vms.all)), knownVM))
	}
	s.guest.put(t, "large", strings.Repeat("x", 100_000))
	for _, path := range []string{"/vms", "/events", "/vms/" + knownVM + "/events", "/vms/" + knownVM, "/openapi.json", "/openapi.yaml", "/docs"} {
		plain, want := s.raw(t, path, "identity")
		resp, body := s.raw(t, path, "br, gzip")
		if resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != "gzip" || len(body) >= len(want) || !strings.Contains(resp.Header.Get("Vary"), "Accept-Encoding") {
			t.Errorf("%s: %d, %v, %d of %d bytes", path, resp.StatusCode, resp.Header, len(body), len(want))
			continue
		}
		reader, err := gzip.NewReader(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(reader); err != nil || string(got) != want {
			t.Errorf("%s: decompressed to %d bytes, %v", path, len(got), err)
		}
		if plain.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: compressed though not accepted", path)
		}
		if resp, _ := s.raw(t, path, "gzip;q=0"); resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: compressed though refused", path)
		}
	}
	// The tag of a compressed answer is another, and stands for the same state.
	resp, _ := s.raw(t, "/vms/"+knownVM, "gzip")
	tag := resp.Header.Get("ETag")
	if plain, _ := s.raw(t, "/vms/"+knownVM, "identity"); !strings.HasSuffix(tag, `-gzip"`) || plain.Header.Get("ETag") == tag {
		t.Errorf("the tag is %s", tag)
	}
	for _, encoding := range []string{"gzip", "identity"} {
		if resp, body := s.raw(t, "/vms/"+knownVM, encoding, "If-None-Match", tag); resp.StatusCode != 304 || body != "" {
			t.Errorf("%s: %d %q", encoding, resp.StatusCode, body)
		}
	}
	for _, path := range []string{files("", "/large", ""), files("/tar", "/large", ""), "/vms/" + knownVM + "/logs", "/healthz", "/images/builds/bld_1/log"} {
		if resp, _ := s.raw(t, path, "gzip"); resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %d, %v", path, resp.StatusCode, resp.Header)
		}
	}
}

// TestStreamsAreNotHeldBack reads the beginning of streams that have not ended.
func TestStreamsAreNotHeldBack(t *testing.T) {
	s := newServer(t)
	s.events.follow = followNothing
	s.vms.log = logNothing
	for target, accept := range map[string]string{
		"/events": "text/event-stream", "/vms/" + knownVM + "/logs?follow=true": "text/plain",
	} {
		r := s.request(t, "GET", target, "")
		r.Header.Set("Accept-Encoding", "gzip")
		r.Header.Set("Accept", accept)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %d, %v", target, resp.StatusCode, resp.Header)
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
			t.Errorf("%s: %v", target, err)
		}
		_ = resp.Body.Close()
	}
}

func followNothing(ctx context.Context, _ event.Filter, send func([]event.Event, int64) error) error {
	if err := send(nil, 1); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func logNothing(ctx context.Context, _ int, _ bool, w io.Writer) error {
	if _, err := io.WriteString(w, "x"); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/internal/errs"
)

const (
	maxBody     = 2 << 20 // bytes
	bodyTimeout = 30 * time.Second
)

// readBody reads the whole body, bounded in size and time, before anything
// acts on the request. Once it is read there is no deadline any more: an old
// one would end a long wait. Uploads are read by who writes them.
func (d *door) readBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkTarget(r.URL); err != nil {
			d.writeProblem(w, r, err)
			return
		}
		if isUpload(r) {
			r.Body = &upload{ReadCloser: r.Body, control: http.NewResponseController(w)}
		} else if r.ContentLength != 0 {
			body, err := d.body(w, r)
			if err != nil {
				d.writeProblem(w, r, err)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			r.Header.Set("Content-Type", "application/json") // in the one spelling that huma knows
		}
		next.ServeHTTP(w, r)
	})
}

// body returns the request's body, which must be JSON, or empty.
func (d *door) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	// A connection that knows no deadlines is one of a test.
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		return nil, bodyError(err)
	}
	if len(body) == 0 {
		return nil, nil
	}
	if !sentAsJSON(r) {
		return nil, &unsupportedMedia{}
	}
	if !utf8.Valid(body) {
		return nil, errs.New(errs.Invalid, "invalid_body", "cannot read the body: it is not valid UTF-8")
	}
	return body, nil
}

// upload is a body of any size, of which each piece is bounded in time.
type upload struct {
	io.ReadCloser
	control *http.ResponseController
}

// Read returns what comes within bodyTimeout. Its errors are for the client.
func (u *upload) Read(p []byte) (int, error) {
	_ = u.control.SetReadDeadline(time.Now().Add(bodyTimeout)) // as in body
	n, err := u.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		_ = u.control.SetReadDeadline(time.Time{})
	case err != nil:
		err = bodyError(err)
	}
	return n, err
}

func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return errs.New(errs.TooLarge, "body_too_large", "cannot take the body: it is larger than the limit of %d bytes", tooLarge.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.Invalid, "body_too_slow", "cannot read the body: it did not arrive within %s", bodyTimeout)
	}
	return errs.New(errs.Invalid, "body_cut_short", "cannot read the body: it ended early").WithCause(err)
}

func sentAsJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// checkTarget refuses bytes that no id, name or label holds, and on which
// databases differ. A path in a guest is bytes; what it may be its service says.
func checkTarget(u *url.URL) error {
	fine := plainText(u.Path)
	for param := range strings.SplitSeq(u.RawQuery, "&") {
		text, err := url.QueryUnescape(param)
		isPath := strings.HasPrefix(param, "path=") && isOfFiles(u.Path)
		fine = fine && err == nil && (isPath || plainText(text))
	}
	if !fine {
		return errs.New(errs.Invalid, "invalid_url", "cannot read the request's path or query: it must be UTF-8 without control characters")
	}
	return nil
}

func plainText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// jsonFormat is JSON as huma's own, but with decoding errors that name the
// field. huma keeps an error's text only; the field travels in front of it.
var jsonFormat = huma.Format{
	Marshal: huma.DefaultJSONFormat.Marshal,
	Unmarshal: func(data []byte, v any) error {
		if err := json.Unmarshal(data, v); err != nil {
			return decodeError(err)
		}
		if generic, ok := v.(*any); ok {
			return refuseUpperCase("", *generic)
		}
		return nil
	},
}

// fieldMark stands between a field's name and what is wrong with it.
const fieldMark = "\x00"

// ownNames are fields whose own fields' names are the client's choice.
var ownNames = map[string]bool{"labels": true, "env": true}

// refuseUpperCase refuses fields such as "Mem_MiB", which encoding/json would
// take for mem_mib, and which nobody has checked.
func refuseUpperCase(within string, body any) error {
	object, _ := body.(map[string]any)
	for name, value := range object {
		if name != strings.ToLower(name) {
			return errors.New(within + name + fieldMark + unknownField)
		}
		if ownNames[name] {
			continue
		}
		if err := refuseUpperCase(within+name+".", value); err != nil {
			return err
		}
	}
	return nil
}

func decodeError(err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return fmt.Errorf("%s%sexpected %s, not %s", wrongType.Field, fieldMark, jsonName(wrongType), wrongType.Value)
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("not valid JSON at byte %d: %w", syntax.Offset, err)
	}
	return errors.New("not valid JSON")
}

// jsonName returns the name that JSON has for the Go type.
func jsonName(e *json.UnmarshalTypeError) string {
	switch kind := e.Type.Kind().String(); {
	case strings.HasPrefix(kind, "int"):
		return "integer"
	case kind == "bool":
		return "boolean"
	case kind == "slice":
		return "array"
	case kind == "string":
		return kind
	}
	return "object"
}

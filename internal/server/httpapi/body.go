package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/server/admission"
)

const (
	maxBody     = 2 << 20 // bytes
	bodyTimeout = 30 * time.Second
	// minProgress is how many bytes of an upload must arrive within bodyTimeout.
	minProgress = 4 << 10
	// maxEmptyBody is how many bytes a client may send where no body is taken: many send {}
	// with every POST.
	maxEmptyBody = 16
)

// readBody reads the whole body, bounded in size and time, before a handler runs.
// Then it clears the deadline, which would end a long wait. Handlers read uploads
// themselves. Only routes that take a body get one: nothing is read for others.
func (d *door) readBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkTarget(r.URL); err != nil {
			d.writeProblem(w, r, err)
			return
		}
		pattern := callerOf(r.Context()).pattern
		switch {
		case r.ContentLength == 0 || pattern == "/": // none, or no route that reads it
		case !d.bodied[pattern]:
			if !saysNothing(w, r) {
				d.writeProblem(w, r, errs.New(errs.Invalid, "body_not_accepted", "cannot accept a body: %s takes none", pattern).
					WithHint("send the request without a body"))
				return
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(nil)), 0
		case isUpload(r):
			control := http.NewResponseController(w)
			defer interruptRead(r, control)()
			r.Body = &upload{ReadCloser: r.Body, control: control, ended: r.Context().Done(), left: bodyTimeout}
		default:
			free, err := d.bufferBody(w, r)
			if err != nil {
				d.writeProblem(w, r, err)
				return
			}
			defer free()
		}
		next.ServeHTTP(w, r)
	})
}

// saysNothing reports whether the body is an empty object, null or white space, and
// reads no more of a body than tells that, whether or not the client says its length.
func saysNothing(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength > maxEmptyBody {
		return false
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // as in body
	stop := interruptRead(r, control)
	body, err := io.ReadAll(io.LimitReader(r.Body, maxEmptyBody+1))
	stop()
	_ = control.SetReadDeadline(time.Time{})
	text := string(bytes.TrimSpace(body))
	return err == nil && len(body) <= maxEmptyBody && (text == "" || text == "{}" || text == "null")
}

// bufferBody replaces the request's body by one in memory. The caller must call free
// when the request has ended.
func (d *door) bufferBody(w http.ResponseWriter, r *http.Request) (free func(), err error) {
	if r.ContentLength > maxBody { // before the client is asked to send it
		return nil, bodyError(&http.MaxBytesError{Limit: maxBody}, bodyTimeout)
	}
	if r.ContentLength > 0 && !isJSON(r) { // likewise
		return nil, &unsupportedMedia{}
	}
	size := r.ContentLength
	if size < 0 { // the client does not tell
		size = maxBody
	}
	keep, err := d.takeBytes(r.Context(), size)
	if err != nil {
		return nil, err
	}
	body, err := d.body(w, r)
	keep(int64(len(body))) // nothing, after an error
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json") // in the one spelling that huma knows
	return func() { keep(0) }, nil
}

// takeBytes takes memory for what the caller sends, as Shares.Take does.
func (d *door) takeBytes(ctx context.Context, size int64) (keep func(left int64), err error) {
	keep, short := d.bodies.Take(owner(ctx), size)
	switch short {
	case admission.OfOwn:
		return nil, errs.New(errs.TooMany, "too_many_bodies", "cannot read the body: the user's requests in progress have too large bodies").
			WithHint("send fewer at a time, and the length of each")
	case admission.OfShared:
		return nil, errs.New(errs.Unavailable, "server_busy", "cannot read the body: all requests in progress have too large bodies").
			WithHint("try again")
	case admission.Enough:
	}
	return keep, nil
}

// body returns the request's body, which must be JSON, or empty.
func (d *door) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	// Only connections of tests have no deadlines.
	deadline := time.Now().Add(bodyTimeout)
	_ = control.SetReadDeadline(deadline)
	stop := interruptRead(r, control)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	stop()
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		return nil, bodyError(err, time.Until(deadline))
	}
	if len(body) == 0 {
		return nil, nil
	}
	if !isJSON(r) {
		return nil, &unsupportedMedia{}
	}
	if !utf8.Valid(body) {
		return nil, errs.New(errs.Invalid, "invalid_body", "cannot read the body: it is not valid UTF-8")
	}
	return body, nil
}

// interruptRead ends a read of the body when the request ends, as when hatchd does,
// until stop is called. Set the deadline of the read before.
func interruptRead(r *http.Request, control *http.ResponseController) (stop func() bool) {
	return context.AfterFunc(r.Context(), func() { _ = control.SetReadDeadline(time.Now()) })
}

// isJSON reports whether the client says that the body is JSON, or a merge patch where
// those are taken.
func isJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && (kind == "application/json" || r.Method == http.MethodPatch && kind == mergePatchType)
}

// upload is a body of any size. Its client must send minProgress at least in each
// bodyTimeout of the time that reads wait for it.
type upload struct {
	io.ReadCloser
	control *http.ResponseController
	ended   <-chan struct{} // closed when the request has ended
	left    time.Duration   // to wait until minProgress has arrived
	arrived int             // bytes, of minProgress
}

// Read waits until the client sends more, or has been too slow. Its errors are for the
// client.
func (u *upload) Read(p []byte) (int, error) {
	began := time.Now()
	_ = u.control.SetReadDeadline(began.Add(u.left)) // as in body
	select {
	case <-u.ended: // interruptRead has set its deadline before this one, if at all
		_ = u.control.SetReadDeadline(began)
	default:
	}
	n, err := u.ReadCloser.Read(p)
	u.left -= time.Since(began)
	if u.arrived += n; u.arrived >= minProgress {
		u.left, u.arrived = bodyTimeout, 0
	}
	switch {
	case errors.Is(err, io.EOF):
		_ = u.control.SetReadDeadline(time.Time{})
	case err != nil:
		err = bodyError(err, u.left)
	}
	return n, err
}

// bodyError returns the error for the client of a read that had left to wait.
func bodyError(err error, left time.Duration) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return errs.New(errs.TooLarge, "body_too_large", "cannot accept the body: it is larger than the limit of %d bytes", tooLarge.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded) && left > 0: // by interruptRead
		return context.Canceled
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errs.New(errs.Invalid, "body_too_slow", "cannot read the body: it arrived too slowly, or not within %s", bodyTimeout)
	}
	return errs.New(errs.Invalid, "body_cut_short", "cannot read the body: it ended early").WithCause(err)
}

// checkTarget refuses bytes that no id, name or label has, and that databases treat
// differently. A path in a guest may be any bytes; its service checks it.
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

// jsonFormat is huma's JSON, with decoding errors that name the field. huma keeps
// only the text of an error, so the field is a prefix of it.
var jsonFormat = huma.Format{
	Marshal: huma.DefaultJSONFormat.Marshal,
	Unmarshal: func(data []byte, v any) error {
		if !utf8.Valid(data) {
			return errors.New("not valid UTF-8")
		}
		if at := loneSurrogate(data); at >= 0 {
			return fmt.Errorf("not valid JSON at byte %d: half of a surrogate pair is no character", at)
		}
		if err := json.Unmarshal(data, v); err != nil {
			return decodeError(err)
		}
		if generic, ok := v.(*any); ok {
			return refuseUpperCase("", *generic)
		}
		return nil
	},
}

// loneSurrogate returns where JSON has an escape such as \ud800 that is only half of a
// character, or -1. encoding/json would silently change it.
func loneSurrogate(data []byte) int {
	for at := 0; at < len(data); at++ {
		if data[at] != '\\' {
			continue
		}
		first := escaped(data[at:])
		if !utf16.IsSurrogate(first) {
			at++ // the escaped byte, which may be a backslash
			continue
		}
		if utf16.DecodeRune(first, escaped(data[min(at+escapeLength, len(data)):])) == utf8.RuneError {
			return at
		}
		at += 2*escapeLength - 1
	}
	return -1
}

const escapeLength = len(`\u0000`)

// escaped returns the UTF-16 code unit that data begins with, as \u and four
// hexadecimal digits, or -1.
func escaped(data []byte) rune {
	if len(data) < escapeLength || data[0] != '\\' || data[1] != 'u' {
		return -1
	}
	unit, err := strconv.ParseUint(string(data[2:escapeLength]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(unit)
}

// fieldMark separates a field's name from the error about it.
const fieldMark = "\x00"

// ownNames are fields whose keys the client chooses.
var ownNames = map[string]bool{"labels": true, "env": true}

// refuseUpperCase refuses fields such as "Mem_MiB", which encoding/json would decode
// as mem_mib without the checks of the schema.
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
	if wrongType, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		// Go names embedded structs, too; the names of JSON are lower case.
		path := slices.DeleteFunc(strings.Split(wrongType.Field, "."), func(name string) bool { return name > "A" && name < "a" })
		return fmt.Errorf("%s%sexpected %s, not %s", strings.Join(path, "."), fieldMark, jsonName(wrongType), wrongType.Value)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not valid JSON at byte %d: %w", syntax.Offset, err)
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return errors.New(strings.Trim(name, `"`) + fieldMark + unknownField)
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

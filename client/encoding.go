package client

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"unicode/utf8"

	"github.com/hatchvm/hatch/api"
)

// encodeUserData returns user data and its encoding as JSON can hold them, unless the
// caller has encoded it.
func encodeUserData(data *string, encoding string) (*string, string) {
	if data == nil || encoding != "" {
		return data, encoding
	}
	text, encoding := api.EncodeText(*data)
	if encoding == "" && len(text) > plainUserData {
		// JSON escapes characters with up to six bytes, and a body is limited, too.
		escaped, err := json.Marshal(text)
		if err == nil && len(escaped) > base64.StdEncoding.EncodedLen(len(text)) {
			text, encoding = base64Of(text), api.EncodingBase64
		}
	}
	return &text, encoding
}

// plainUserData is the size, in bytes, up to which text is sent as such in any case: even
// if JSON makes it six times as large, the body is within its limit.
const plainUserData = 256 << 10

// encodeCommand encodes all strings of a command if one of them is not UTF-8, unless
// the caller has encoded them.
func encodeCommand(body api.RunExec) api.RunExec {
	words := append(slices.Clone(body.Command.Argv), body.Command.Shell, body.Cwd)
	for _, value := range body.Env {
		words = append(words, value)
	}
	if body.Encoding != "" || !slices.ContainsFunc(words, func(s string) bool { return !utf8.ValidString(s) }) {
		return body
	}
	plain := body
	body.Encoding = api.EncodingBase64
	body.Command = api.Command{Shell: base64Of(plain.Command.Shell)}
	for _, word := range plain.Command.Argv {
		body.Command.Argv = append(body.Command.Argv, base64Of(word))
	}
	body.Cwd = base64Of(plain.Cwd)
	body.Env = make(map[string]string, len(plain.Env))
	for name, value := range plain.Env {
		body.Env[name] = base64Of(value)
	}
	return body
}

func base64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

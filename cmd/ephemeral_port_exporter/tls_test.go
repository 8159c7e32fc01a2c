//go:build linux

package main

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientCertificate checks that a scrape needs a client certificate if --web.config.file asks for
// one, over HTTP/1 and HTTP/2.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	config := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(config, []byte(`tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: server.crt
`), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	foreignDir := t.TempDir()
	certificate(t, foreignDir)
	foreign, err := tls.LoadX509KeyPair(filepath.Join(foreignDir, "server.crt"), filepath.Join(foreignDir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	const address = "127.0.0.1:10188"
	start(t, command(t, "--web.listen-address="+address, "--web.config.file="+config), "https://"+address)

	for name, tt := range map[string]struct {
		certificates []tls.Certificate
		protocol     int // of HTTP; 0 if the scrape must fail
	}{
		"HTTP/1":              {[]tls.Certificate{own}, 1},
		"HTTP/2":              {[]tls.Certificate{own}, 2},
		"no certificate":      {nil, 0},
		"foreign certificate": {[]tls.Certificate{foreign}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Transport: &http.Transport{
				TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, Certificates: tt.certificates},
				ForceAttemptHTTP2: tt.protocol == 2,
			}}
			defer client.CloseIdleConnections()
			resp, err := client.Get("https://" + address + "/metrics")
			if tt.protocol == 0 {
				if err == nil {
					resp.Body.Close()
					t.Errorf("answered with %s", resp.Status)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.ProtoMajor != tt.protocol || !strings.Contains(string(body), selfSucceeded) {
				t.Errorf("HTTP/%d, %s, %v:\n%s", resp.ProtoMajor, resp.Status, err, body)
			}
		})
	}
}

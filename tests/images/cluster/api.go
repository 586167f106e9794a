// The API of the test cluster: counts requests in Redis. It serves and calls with mutual TLS; key,
// certificate and authorities are read anew for each connection, so that they can change.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

const place = "/dev/shm/bulla-marble/"

func config() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(place+"tls.pem", place+"tls.pem")
	if err != nil {
		return nil, err
	}
	authorities, err := os.ReadFile(place + "ca.crt")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("no authorities")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS12,
	}, nil
}

// One command to Redis, over a connection of its own.
func redis(words ...string) (string, error) {
	client, err := config()
	if err != nil {
		return "", err
	}
	connection, err := tls.Dial("tcp", os.Getenv("REDIS"), client)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	reader := bufio.NewReader(connection)
	answer := ""
	for _, command := range [][]string{{"AUTH", os.Getenv("PASSWORD")}, words} {
		fmt.Fprintf(connection, "*%d\r\n", len(command))
		for _, word := range command {
			fmt.Fprintf(connection, "$%d\r\n%s\r\n", len(word), word)
		}
		line, err := reader.ReadString('\n')
		if err != nil {
			return "", err
		}
		answer = strings.TrimSpace(line)
		if strings.HasPrefix(answer, "-") {
			return "", fmt.Errorf("redis: %s", answer)
		}
	}
	return answer, nil
}

func main() {
	http.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		count, err := redis("INCR", "hits")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		peer := r.TLS.PeerCertificates[0]
		fmt.Fprintf(w, "count %s for %s\n", count, strings.Join(peer.DNSNames, ","))
	})
	listener, err := net.Listen("tcp", os.Getenv("LISTEN"))
	if err != nil {
		log.Fatal(err)
	}
	each := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return config()
	}}
	log.Fatal(http.Serve(tls.NewListener(listener, each), nil))
}

package mesh.apps.spring;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import mesh.apps.Console;
import mesh.apps.Consumer;
import mesh.apps.Flags;
import mesh.apps.Shop;
import org.springframework.http.ResponseEntity;
import org.springframework.http.client.JdkClientHttpRequestFactory;
import org.springframework.web.client.HttpServerErrorException;
import org.springframework.web.client.RestClient;

/**
 * An HTTP consumer as Spring Boot makes it: RestClient over the JDK's client, which offers an upgrade to HTTP/2 with the first
 * request of a connection. {@code --to host:port, --authority NAME} (the Host header). Needs
 * {@code -Djdk.httpclient.allowRestrictedHeaders=host}.
 */
public final class HttpConsumer extends Consumer {
    private static final Duration TIMEOUT = Duration.ofSeconds(20);

    private final String base;
    private final String authority;
    private final HttpClient http = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();
    private final Shop shop;

    private HttpConsumer(Flags flags) {
        String to = flags.require("to");
        base = "http://" + to;
        authority = flags.get("authority", to);
        shop = new HttpShop(client(Map.of(), TIMEOUT));

        cases.put("server-error", () -> {
            try {
                shop.crash("boom");
            } catch (HttpServerErrorException.InternalServerError e) {
                return same("boom", e.getResponseBodyAsString());
            }
            throw new AssertionError("no exception");
        });
        cases.put("async", () -> http.sendAsync(request("/later/20").build(), HttpResponse.BodyHandlers.ofString())
                .thenApply(HttpResponse::body)
                .get(10, TimeUnit.SECONDS));
        cases.put("chunked", this::chunked);
        cases.put("events", this::events);
        cases.put("head", () -> {
            HttpRequest head =
                    request("/who").method("HEAD", HttpRequest.BodyPublishers.noBody()).build();
            HttpResponse<String> answer = http.send(head, HttpResponse.BodyHandlers.ofString());
            same(200, answer.statusCode());
            return same("", answer.body()) + "no body";
        });
    }

    private HttpRequest.Builder request(String path) {
        return HttpRequest.newBuilder(URI.create(base + path)).header("Host", authority).timeout(TIMEOUT);
    }

    private RestClient client(Map<String, String> headers, Duration timeout) {
        JdkClientHttpRequestFactory factory = new JdkClientHttpRequestFactory(http);
        factory.setReadTimeout(timeout);
        return RestClient.builder()
                .requestFactory(factory)
                .baseUrl(base)
                .defaultHeader("Host", authority)
                .defaultHeaders(all -> headers.forEach(all::set))
                .build();
    }

    /** A body whose length is not known before it is sent. */
    private String chunked() throws IOException, InterruptedException {
        String text = "chunk ".repeat(50_000);
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        HttpRequest post = request("/echo")
                .header("Content-Type", "text/plain")
                .POST(HttpRequest.BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(bytes)))
                .build();
        HttpResponse<String> answer = http.send(post, HttpResponse.BodyHandlers.ofString());
        same(text, answer.body());
        return bytes.length + " bytes";
    }

    /** Each server-sent event must be here before the next one is asked for. */
    private String events() throws IOException, InterruptedException {
        String path = "/events/e" + System.nanoTime();
        HttpResponse<java.io.InputStream> stream =
                http.send(request(path).build(), HttpResponse.BodyHandlers.ofInputStream());
        try (BufferedReader lines =
                new BufferedReader(new InputStreamReader(stream.body(), StandardCharsets.UTF_8))) {
            same("data:open", lines.readLine());
            for (String text : new String[] {"first", "second"}) {
                post(path, text);
                same("", lines.readLine());
                same("data:" + text, lines.readLine());
            }
            post(path, "end");
            same("", lines.readLine());
            same(null, lines.readLine());
        }
        return "3 events, each before the next";
    }

    private void post(String path, String text) throws IOException, InterruptedException {
        HttpRequest post = request(path)
                .header("Content-Type", "text/plain")
                .POST(HttpRequest.BodyPublishers.ofString(text))
                .build();
        same(200, http.send(post, HttpResponse.BodyHandlers.discarding()).statusCode());
    }

    @Override
    protected Shop shop() {
        return shop;
    }

    @Override
    @SuppressWarnings("unchecked")
    protected Headers headers(Map<String, String> send) {
        ResponseEntity<Map<String, String>> answer = (ResponseEntity<Map<String, String>>)
                (ResponseEntity<?>) client(send, TIMEOUT).get().uri("/headers").retrieve().toEntity(Map.class);
        Map<String, String> answered = new HashMap<>();
        answer.getHeaders().forEach((name, values) -> answered.put(name.toLowerCase(), values.get(0)));
        return new Headers(answer.getBody(), answered);
    }

    @Override
    protected String label(String method, Map<String, String> headers, int timeoutMillis) {
        String path = method.startsWith("slow") ? "/slow/" + method.substring("slow".length()) : "/" + method;
        return client(headers, Duration.ofMillis(timeoutMillis)).get().uri(path).retrieve().body(String.class);
    }

    @Override
    protected void notice(String id) {
        shop.notice(id);
    }

    public static void main(String[] args) {
        Console console = new Console();
        new HttpConsumer(new Flags(args)).serve(console);
    }
}

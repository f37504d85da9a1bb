package mesh.apps.spring;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import mesh.apps.Order;
import mesh.apps.OrderException;
import mesh.apps.Shop;
import org.springframework.http.MediaType;
import org.springframework.web.client.HttpClientErrorException;
import org.springframework.web.client.RestClient;

/** The shop as a caller over HTTP sees it. */
final class HttpShop implements Shop {
    private static final MediaType TEXT = new MediaType("text", "plain", java.nio.charset.StandardCharsets.UTF_8);

    private final RestClient client;

    HttpShop(RestClient client) {
        this.client = client;
    }

    private String text(String path, Object... variables) {
        return client.get().uri(path, variables).retrieve().body(String.class);
    }

    @Override
    public String who() {
        return text("/who");
    }

    @Override
    public String audit() {
        return text("/audit");
    }

    @Override
    public String echo(String text) {
        String answer = client.post().uri("/echo").contentType(TEXT).accept(TEXT).body(text).retrieve().body(String.class);
        return answer == null ? "" : answer;
    }

    @Override
    public Order place(Order order) {
        return client.post()
                .uri("/orders")
                .contentType(MediaType.APPLICATION_JSON)
                .body(order)
                .retrieve()
                .body(Order.class);
    }

    @Override
    public void reject(String code) throws OrderException {
        try {
            client.post().uri("/reject/{code}", code).retrieve().toBodilessEntity();
        } catch (HttpClientErrorException.UnprocessableEntity e) {
            throw read(e.getResponseBodyAsByteArray());
        }
    }

    private static OrderException read(byte[] body) {
        try {
            JsonNode json = new ObjectMapper().readTree(body);
            List<String> reasons = new ArrayList<>();
            json.get("reasons").forEach(reason -> reasons.add(reason.asText()));
            return new OrderException(json.get("message").asText(), json.get("code").asText(), reasons);
        } catch (IOException e) {
            throw new IllegalStateException("not an error of the shop", e);
        }
    }

    @Override
    public String crash(String message) {
        return text("/crash/{message}", message);
    }

    @Override
    public String nothing(String ignored) {
        return text("/nothing");
    }

    @Override
    public byte[] reverse(byte[] data) {
        return client.post()
                .uri("/reverse")
                .contentType(MediaType.APPLICATION_OCTET_STREAM)
                .body(data)
                .retrieve()
                .body(byte[].class);
    }

    @Override
    public void notice(String id) {
        client.post().uri("/notices/{id}", id).retrieve().toBodilessEntity();
    }

    @Override
    public int notices(String id) {
        return Integer.parseInt(text("/notices/{id}", id));
    }

    @Override
    public String slow(int millis) {
        return text("/slow/{millis}", millis);
    }

    @Override
    @SuppressWarnings("unchecked")
    public Map<String, String> headers() {
        return client.get().uri("/headers").retrieve().body(Map.class);
    }
}

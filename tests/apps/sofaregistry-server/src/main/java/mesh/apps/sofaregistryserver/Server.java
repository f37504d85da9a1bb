package mesh.apps.sofaregistryserver;

import com.alipay.sofa.registry.server.integration.RegistryApplication;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import mesh.apps.Console;
import mesh.apps.Flags;

/**
 * SOFARegistry's meta, data and session servers in one process, with all data in memory. It listens on every address, so it
 * belongs into a network namespace; {@code --address} is its own in there. {@code READY} when all three are in service.
 */
public final class Server {
    private static final int[] HTTP_PORTS = {9615, 9622, 9603};

    private Server() {}

    public static void main(String[] args) throws Exception {
        Console console = new Console();
        String address = new Flags(args).require("address");
        RegistryApplication.main(new String[0]);
        for (int port : HTTP_PORTS) {
            while (!isHealthy("http://" + address + ":" + port + "/health/check")) {
                Thread.sleep(200);
            }
        }
        console.provide();
    }

    private static boolean isHealthy(String url) throws InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(2)).build();
        try {
            HttpResponse<String> answer =
                    HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
            return answer.body().contains("\"success\":true");
        } catch (java.io.IOException e) {
            return false;
        }
    }
}

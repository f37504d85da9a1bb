package mesh.apps.eureka;

import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.InstanceInfo;
import com.netflix.discovery.EurekaClient;
import com.netflix.discovery.converters.wrappers.CodecWrappers;
import com.netflix.discovery.shared.Applications;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.stream.Collectors;
import mesh.apps.Console;
import mesh.apps.Flags;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.cloud.client.ServiceInstance;
import org.springframework.cloud.client.discovery.DiscoveryClient;
import org.springframework.context.ConfigurableApplicationContext;

/**
 * A Spring Cloud application with the stock Eureka client. Commands: {@code find NAME} lists the instances that the
 * DiscoveryClient finds, {@code apps} all that the Eureka client holds, {@code xml} all that the stock XML codec reads,
 * {@code status WORD} sets the own status, {@code quit} leaves in an orderly way.
 */
@SpringBootApplication
public class Client {
    public static void main(String[] args) throws Exception {
        Console console = new Console();
        Flags flags = new Flags(args);
        String servers = flags.require("servers");
        List<String> properties = new ArrayList<>(List.of(
                "spring.main.banner-mode=off",
                "spring.application.name=" + flags.require("name"),
                "server.address=" + flags.get("address", "127.0.0.1"),
                "server.port=" + flags.get("port", "0"),
                "eureka.client.service-url.defaultZone=" + servers,
                "eureka.client.register-with-eureka=" + flags.get("register", "true"),
                "eureka.client.registry-fetch-interval-seconds=1",
                "eureka.client.instance-info-replication-interval-seconds=1",
                "eureka.client.initial-instance-info-replication-interval-seconds=0",
                "eureka.client.disable-delta=" + flags.get("disable-delta", "false"),
                "eureka.instance.ip-address=" + flags.get("address", "127.0.0.1"),
                "eureka.instance.prefer-ip-address=true",
                "eureka.instance.instance-id=" + flags.get("id", flags.require("name")),
                "eureka.instance.metadata-map.zone=" + flags.get("zone", "z1"),
                "eureka.instance.lease-renewal-interval-in-seconds=1",
                "eureka.instance.lease-expiration-duration-in-seconds=" + flags.get("lease", "3")));
        ConfigurableApplicationContext context = new SpringApplicationBuilder(Client.class)
                .web(flags.get("register", "true").equals("true") ? WebApplicationType.SERVLET : WebApplicationType.NONE)
                .properties(properties.toArray(String[]::new))
                .run();
        DiscoveryClient discovery = context.getBean(DiscoveryClient.class);
        EurekaClient eureka = context.getBean(EurekaClient.class);
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            String[] words = line.split(" ");
            try {
                switch (words[0]) {
                    case "find" -> console.print(discovery.getInstances(words[1]).stream()
                            .map(Client::describe).sorted().collect(Collectors.joining(" ")));
                    case "apps" -> console.print(describe(eureka.getApplications()));
                    case "xml" -> console.print(describe(readXml(servers.split(",")[0])));
                    case "status" -> {
                        context.getBean(ApplicationInfoManager.class)
                                .setInstanceStatus(InstanceInfo.InstanceStatus.valueOf(words[1]));
                        console.print("done");
                    }
                    case "quit" -> {
                        context.close();
                        console.print("done");
                        System.exit(0);
                    }
                    default -> console.print("unknown command: " + line);
                }
            } catch (Exception failure) {
                failure.printStackTrace();
                console.print("error " + failure);
            }
        }
        Runtime.getRuntime().halt(0);
    }

    private static String describe(ServiceInstance instance) {
        return instance.getHost() + ":" + instance.getPort() + new TreeMap<>(instance.getMetadata());
    }

    private static String describe(Applications applications) {
        return applications.getRegisteredApplications().stream()
                .flatMap(application -> application.getInstancesAsIsFromEureka().stream())
                .map(info -> info.getAppName() + "/" + info.getId() + "@" + info.getIPAddr() + ":" + info.getPort()
                        + "=" + info.getStatus() + new TreeMap<>(info.getMetadata()))
                .sorted()
                .collect(Collectors.joining(" "));
    }

    private static Applications readXml(String server) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(server + "/apps"))
                .header("Accept", "application/xml").build();
        String body = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body();
        return CodecWrappers.getDecoder(CodecWrappers.XStreamXml.class).decode(body, Applications.class);
    }
}
